"""GEMM in float: one FMA for each k, ascending, of exact float32 operands.

For elements that are no small integers (E4M3, E5M2, E3M2), for weights quantized and activations
not, and for weights that were not quantized either. code * scale is exact in float32, of a weight
as of an activation, so the result is that of a float32 GEMM of the dequantized matrices, bit for
bit; only the tensor scales wait for the end. Weights are decoded on the way to the register tile: a
decoded vector serves all its rows.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import decode
from lbcompiler.targets.cpu.gemm import Config, Output, Place, Tile, chunk_rows, emit_gemm
from lbcompiler.targets.cpu.gemm_integer import load_planes, load_scales, weight_arguments
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, fma, kernel, let, root_block, splat
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, Isa
from lbcompiler.targets.cpu.layout import COLUMNS, tiles

STEP = 4  # k's that the innermost loop takes: as many as share a byte of a 6-bit code's upper plane

GENERIC_TILES = (Tile(2, 1), Tile(1, 1))
TILES = {
    AVX512_VNNI: (Tile(12, 2), Tile(4, 2), Tile(1, 4)),
    AVX2: (Tile(4, 1), Tile(1, 2)),
}


@dataclass(frozen=True)
class FloatGemm:
    """The generator for one pair of formats, None being float32, and one instruction set."""

    isa: Isa
    weight: BlockFormat | None
    act: BlockFormat | None

    def config(self, n: int, k: int) -> Config:
        """The default tiles for a shape."""
        return Config(TILES.get(self.isa, GENERIC_TILES), chunk_rows(k, n, 4))

    def build(
        self, n: int, k: int, *, bias: bool, epilogue: str, config: Config | None = None
    ) -> Any:
        """PrimFunc(x[, row_scales], w_codes.., w_scales[, w_tensor_scale][, bias], y).

        x f32 (M, k), row_scales f32 (M, 1), codes and scales as layout.py has them for groups of
        one k (float weights: one argument w f32 (T, k, 16) instead), w_tensor_scale f32 (1,), bias
        f32 (n,), y f32 (M, n).
        """
        with kernel() as builder:
            self._emit(n, k, bias, epilogue, config or self.config(n, k))
        return builder.get()

    def _emit(self, n: int, k: int, bias: bool, epilogue: str, config: Config) -> None:
        m = tirx.Var("m", "int64")
        x = T.arg("x", T.buffer((m, k), "float32"))
        scales = []
        if self.act is not None and self.act.has_tensor_scale:
            scales.append((T.arg("row_scales", T.buffer((m, 1), "float32")), True))
        weights = self._weights(n, k)
        if self.weight is not None and self.weight.has_tensor_scale:
            scales.append((T.arg("w_tensor_scale", T.buffer((1,), "float32")), False))
        b = T.arg("bias", T.buffer((n,), "float32")) if bias else None
        y = T.arg("y", T.buffer((m, n), "float32"))

        def body(place: Place) -> None:
            weights.emit(place, x, k)

        with root_block():
            emit_gemm(self.isa, config, m, Output(y, n, tuple(scales), b, epilogue), body)

    def _weights(self, n: int, k: int) -> "_Blocks | _Dense":
        if self.weight is None:
            return _Dense(self.isa, T.arg("w", T.buffer((tiles(n), k, COLUMNS), "float32")))
        planes, w_scales = weight_arguments(self.weight, n, k, 1)
        return _Blocks(self.isa, self.weight, planes, w_scales)


@dataclass(frozen=True)
class _Dense:
    """Float weights (T, k, 16)."""

    isa: Isa
    w: Any

    def emit(self, place: Place, x: Any, k: int) -> None:
        """All of K: whole steps in a loop, then what is left."""
        if k // STEP:
            with T.serial(k // STEP) as step:
                self._step(place, x, let(step * STEP), STEP)
        if k % STEP:
            self._step(place, x, k // STEP * STEP, k % STEP)

    def _step(self, place: Place, x: Any, start: Expr, count: int) -> None:
        with T.unroll(count) as i:
            columns = []
            for v in range(place.tile.columns * COLUMNS // self.isa.lanes):
                tile, lane = divmod(v * self.isa.lanes, COLUMNS)
                columns.append(
                    let(self.w[place.column + tile, start + i, at(lane, self.isa.lanes)])
                )
            add_outer_product(self.isa, place, x, start + i, columns)


@dataclass(frozen=True)
class _Blocks:
    """Block-scaled weights, decoded where they are used."""

    isa: Isa
    fmt: BlockFormat
    planes: list[Any]
    scales: Any

    def emit(self, place: Place, x: Any, k: int) -> None:
        """All of K: whole blocks in a loop, then the short one."""
        if k // self.fmt.block:
            with T.serial(k // self.fmt.block) as block:
                IRBuilder.name("block", block)
                self._block(place, x, block, self.fmt.block)
        if k % self.fmt.block:
            self._block(place, x, k // self.fmt.block, k % self.fmt.block)

    def _block(self, place: Place, x: Any, block: Expr, count: int) -> None:
        divisor = decode.divisor(self.fmt.element)
        factors = []
        for v in range(place.tile.columns * COLUMNS // self.isa.lanes):
            stored = load_scales(self.scales, place, block, v, self.isa)
            scale = decode.scale_value(self.fmt.scale, stored)
            factors.append(bound(scale * splat(1.0 / divisor, "float32", self.isa.lanes)))
        start = block * self.fmt.block
        if count // STEP:
            with T.serial(count // STEP) as step:
                self._step(place, x, let(start + step * STEP), STEP, factors)
        if count % STEP:
            self._step(place, x, start + count // STEP * STEP, count % STEP, factors)

    def _step(self, place: Place, x: Any, start: Expr, count: int, factors: list[Expr]) -> None:
        groups = decode.group_count(self.fmt.element)
        if count // groups:
            with T.unroll(count // groups) as i:
                self._loads(place, x, start + i * groups, groups, factors)
        if count % groups:
            self._loads(place, x, start + count // groups * groups, count % groups, factors)

    def _loads(self, place: Place, x: Any, start: Expr, count: int, factors: list[Expr]) -> None:
        """The first `count` k's of one load of each plane."""
        index = start // decode.group_count(self.fmt.element)
        decoded = [
            self._decoded(load_planes(self.planes, place, index, v, self.isa, 1), factor)
            for v, factor in enumerate(factors)
        ]
        for i in range(count):
            columns = [bound(vector[i]) for vector in decoded]
            add_outer_product(self.isa, place, x, start + i, columns)

    def _decoded(self, planes: list[list[Expr]], factor: Expr) -> list[Expr]:
        codes = decode.stored_codes(self.fmt.element, planes)
        return [decode.real_value(self.fmt.element, code) * factor for code in codes]


def add_outer_product(isa: Isa, place: Place, x: Any, k: Expr, columns: list[Expr]) -> None:
    """accumulators[r][v] += x[r, k] * columns[v], one FMA each."""
    for r in range(place.tile.rows):
        value = let(splat(x[place.row + r, k], "float32", isa.lanes))
        for v, column in enumerate(columns):
            slot = place.slot(isa, r, v)
            total = fma(value, column, place.accumulators[slot])
            T.buffer_store(place.accumulators, total, [slot])
