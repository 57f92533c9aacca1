"""What a float GEMM multiplies with: activations as float32, or as pairs of bfloat16.

Code * scale of two block formats is exact in bfloat16, whose significand has 8 bits, as long as it
is no denormal, which `vdpbf16ps` takes as zero. So a block whose scale is not plain keeps its bare
codes in the pairs; its scale stands in `scales`, where that of every other block is 1, and `flags`
says of each row whether it has such a block.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu.gemm import Task
from lbcompiler.targets.cpu.intrinsics import Expr, real_of
from lbcompiler.targets.cpu.layout import padded
from lbcompiler.targets.cpu.plain import flagged


def pair_count(k: int) -> int:
    """Pairs that hold a row of k numbers."""
    return padded(k, 2) // 2


def pair_stride(k: int) -> int:
    """Pairs from one row to the next: an odd number of cache lines (`layout.row_stride`)."""
    return (-(-pair_count(k) // 16) | 1) * 16


@dataclass(frozen=True)
class FloatRows:
    """x f32 (M, k)."""

    x: Any

    @classmethod
    def declare(cls, m: Expr, k: int) -> "FloatRows":
        return cls(T.arg("x", T.buffer((m, k), "float32")))

    def value(self, row: Expr, k: Expr) -> Expr:
        """x[row, k], float32."""
        return self.x[row, k]


@dataclass(frozen=True)
class PairRows:
    """pairs int32 (M, pair_stride(k)), x[2i] in the high half of pair i, x[2i + 1] in the low one.

    For a format with scales in E8M0 also scales f32 (M, blocks) and flags int32 (M, 1).
    """

    fmt: BlockFormat
    pairs: Any
    scales: Any = None
    flags: Any = None

    @classmethod
    def declare(cls, fmt: BlockFormat, m: Expr, k: int) -> "PairRows":
        pairs = T.arg("pairs", T.buffer((m, pair_stride(k)), "int32"))
        if fmt.has_tensor_scale:
            return cls(fmt, pairs)
        scales = T.arg("scales", T.buffer((m, fmt.blocks(k)), "float32"))
        return cls(fmt, pairs, scales, T.arg("flags", T.buffer((m, 1), "int32")))

    def value(self, row: Expr, k: Expr) -> Expr:
        """x[row, k], float32."""
        half = self.pairs[row, k // 2] << tirx.Cast("int32", k % 2 * 16)
        value = real_of(half & tirx.const(-(1 << 16), "int32"))
        return value if self.scales is None else value * self.scales[row, k // self.fmt.block]

    def unusual(self, task: Task) -> Expr:
        """Not 0 if a row of the task has a block that is not plain."""
        return tirx.const(0, "int32") if self.flags is None else flagged(task, self.flags)
