"""A linear that sm_100a multiplies by `tcgen05` (gemm_tcgen05.py), for those who ask for it."""

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from lbcompiler.formats import Quantized
from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.configs import Program
from lbcompiler.targets.cuda.gemm_tcgen05 import Tiled, Tokens, emit_tcgen05
from lbcompiler.targets.cuda.intrinsics import by_rows, kernel
from lbcompiler.targets.cuda.layout import Array
from lbcompiler.targets.cuda.layout_native import ROW, Pair, rows_of_bytes
from lbcompiler.targets.cuda.layout_tcgen05 import ATOM, GROUP, atoms, pack_scales, pair_of
from lbcompiler.targets.cuda.linear_kernel import Config, Spec
from lbcompiler.targets.cuda.native_kernel import NativeKernel
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.quantize import PLAIN
from lbcompiler.targets.cuda.quantize_native import NativeQuantizer
from lbcompiler.targets.cuda.split import FEW

DEEPEST = 8  # ring


@dataclass(frozen=True)
class Tcgen05Kernel(NativeKernel):
    """A block takes 16 rows of x over `few_stages` if that is all, 128 over `stages`, and `tokens`
    over `wide_stages` if there are more.
    """

    def _pair(self) -> Pair | None:
        return pair_of(self.weight, self.act)

    @property
    def packing(self) -> str:
        return "tensor_memory"

    @property
    def quantizer(self) -> str:
        return f"{super().quantizer}_tensor_memory"

    def quantize(self, k: int, scale_rule: str, prologue: Prologue = PLAIN) -> Any:
        """PrimFunc(x f32 (M, k), codes, scales[, row scales f32 (M, 1)])."""
        return NativeQuantizer(self.pair, prologue, is_tiled=True).build(k, scale_rule)

    def quantized_specs(self, k: int) -> list[Spec]:
        """The second operand has a row for each 128 of x."""
        specs = super().quantized_specs(k)
        specs[1] = ((self.pair.depths(k) * atoms(self.pair), ATOM), "uint8")
        return specs

    def quantized_shapes(self, m: Any, k: int) -> list[tuple[tuple[Any, ...], str]]:
        shapes = super().quantized_shapes(m, k)
        (_, *rest), dtype = shapes[1]
        shapes[1] = (((m + (GROUP - 1)) // GROUP, *rest), dtype)
        return shapes

    def gemm(
        self, n: int, k: int, *, bias: bool, epilogue: str = "none", config: Config | None = None
    ) -> Any:
        chosen, pair = config or self.default_config(n, k), self.pair
        self._check(chosen)
        few, some, many = _launches(chosen)
        with kernel() as builder:
            m = tirx.Var("m", "int64")
            x = Tiled.declare("x", pair, m, k)
            has_scale = self.weight.has_tensor_scale
            row_scales = self._row_scales(m)
            weights = Tiled.declare("w", pair, n, k)
            output = Output.declare(m, n, row_scales, has_scale, bias, epilogue)
            by_rows(
                m,
                (few.count, lambda: emit_tcgen05(few, x, weights, output)),
                (some.count, lambda: emit_tcgen05(some, x, weights, output)),
                (None, lambda: emit_tcgen05(many, x, weights, output)),
            )
        return builder.get()

    def default_config(self, n: int, k: int) -> Config:
        """The deepest rings that fit."""

        def deepest(count: int) -> int:
            return next(
                stages
                for stages in range(DEEPEST, 0, -1)
                if Tokens(count, stages).shared_bytes(self.pair) <= self.arch.block_shared
            )

        tokens = 2 * GROUP
        few, some, many = (deepest(count) for count in (FEW, GROUP, tokens))
        return Config(GROUP, GROUP, 1, 4, some, 4, few, tokens, many)

    def _shared_bytes(self, config: Config) -> int:
        return max(tokens.shared_bytes(self.pair) for tokens in _launches(config))

    def programs(self, n: int, k: int) -> tuple[Program, ...]:
        return Program("few", FEW, 1), Program("some", GROUP, GROUP), Program("many", None, 2048)

    def _choices(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        if m <= FEW:
            return {"few_stages": (4, 6, 8)}
        if m <= GROUP:
            return {"stages": (2, 4, 6)}
        return {"tokens": (GROUP, 2 * GROUP), "wide_stages": (2, 3, 4)}

    def _packed_shapes(self, n: int, k: int) -> list[tuple[int, ...]]:
        depth = self.pair.depths(k)
        return [(n, depth * ROW), (-(-n // GROUP), depth * atoms(self.pair), ATOM)]

    def _packed(self, w: Quantized) -> tuple[Array, ...]:
        scales = pack_scales(w.scales, self.pair, w.codes.shape[1])
        return rows_of_bytes(w.codes, self.pair), scales


def _launches(config: Config) -> tuple[Tokens, Tokens, Tokens]:
    return (
        Tokens(FEW, config.few_stages),
        Tokens(GROUP, config.stages),
        Tokens(config.tokens, config.wide_stages),
    )
