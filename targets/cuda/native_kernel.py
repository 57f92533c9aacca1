"""A linear whose codes and scales the tensor cores multiply as they are (layout_native.py)."""

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from lbcompiler.errors import ConfigError
from lbcompiler.formats import Quantized
from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.cuda.gemm_mma import Tiling
from lbcompiler.targets.cuda.gemm_native import NativeRows, NativeWeights, emit_native
from lbcompiler.targets.cuda.intrinsics import by_rows, kernel
from lbcompiler.targets.cuda.layout import Array, tiles
from lbcompiler.targets.cuda.layout_native import (
    EIGHT_BIT,
    ROW,
    Pair,
    pack_codes,
    pack_scales,
    pair_of,
)
from lbcompiler.targets.cuda.linear_kernel import Config, LinearKernel, Spec
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.quantize import PLAIN
from lbcompiler.targets.cuda.quantize_native import NativeQuantizer
from lbcompiler.targets.cuda.split import FEW, parts_to_fill


@dataclass(frozen=True)
class NativeKernel(LinearKernel):
    """Up to 16 rows a block takes 16 columns a warp, with `few_warps` and `few_stages`."""

    @property
    def route(self) -> str:
        return "native"

    @property
    def pair(self) -> Pair:
        pair = self._pair()
        if pair is None:
            raise ConfigError(f"no instruction multiplies the formats of {self.name}")
        return pair

    def _pair(self) -> Pair | None:
        return pair_of(self.weight, self.act)

    @property
    def packing(self) -> str:
        return "steps"

    @property
    def quantizer(self) -> str:
        assert self.act is not None
        size = "bytes" if self.act.name in EIGHT_BIT else "nibbles"
        return f"{self.act.name}_{size}"

    def quantize(self, k: int, scale_rule: str, prologue: Prologue = PLAIN) -> Any:
        """PrimFunc(x f32 (M, k), codes, scales[, row scales f32 (M, 1)])."""
        return NativeQuantizer(self.pair, prologue).build(k, scale_rule)

    def quantized_specs(self, k: int) -> list[Spec]:
        depth = self.pair.depths(k)
        specs: list[Spec] = [
            ((depth * ROW,), "uint8"),
            ((depth * self.pair.row_scales,), "uint8"),
        ]
        return [*specs, ((1,), "float32")] if self.pair.act.has_tensor_scale else specs

    def gemm(
        self, n: int, k: int, *, bias: bool, epilogue: str = "none", config: Config | None = None
    ) -> Any:
        chosen, pair = config or self.default_config(n, k), self.pair
        self._check(chosen)
        with kernel() as builder:
            m = tirx.Var("m", "int64")
            x = NativeRows.declare(pair, m, k)
            row_scales = self._row_scales(m)
            weights = NativeWeights.declare(pair, n, k)
            has_scale = self.weight.has_tensor_scale
            output = Output.declare(m, n, row_scales, has_scale, bias, epilogue)
            few, some = chosen.split.declare(n)
            ways = [(FEW, partial(emit_native, _few(chosen), x, weights, output, few))]
            if some is not None:
                split = partial(emit_native, chosen.tiling, x, weights, output, some)
                ways.append((chosen.rows, split))
            by_rows(m, *ways, (None, partial(emit_native, chosen.tiling, x, weights, output)))
            chosen.split.combine(few, some, output)
        return builder.get()

    def default_config(self, n: int, k: int) -> Config:
        """The deepest ring that fits; parts of K that fill the GPU, of two tiles at least."""
        count, multiprocessors = self.pair.depths(k), self.arch.multiprocessors
        few_splits, splits = (
            parts_to_fill(multiprocessors, -(-n // columns), count, 2) for columns in (64, 128)
        )
        configs = (
            Config(128, 128, 2, 4, stages, 4, 3, few_splits=few_splits, splits=splits)
            for stages in (4, 3, 2)
        )
        return next(c for c in configs if self._shared_bytes(c) <= self.arch.block_shared)

    def _shared_bytes(self, config: Config) -> int:
        row, tile = ROW + self.pair.row_scales, self.pair.tile_bytes
        return max(t.shared_bytes(row, tile) for t in (config.tiling, _few(config)))

    def _packed_shapes(self, n: int, k: int) -> list[tuple[int, ...]]:
        sizes = (*self.pair.plane_bytes, self.pair.scale_bytes)
        return [(tiles(n), self.pair.depths(k), size) for size in sizes]

    def _packed(self, w: Quantized) -> tuple[Array, ...]:
        planes = pack_codes(w.codes, self.pair)
        return (*planes, pack_scales(w.scales, self.pair, w.codes.shape[1]))


def _few(config: Config) -> Tiling:
    return Tiling(FEW, 16 * config.few_warps, 1, config.few_warps, config.few_stages)
