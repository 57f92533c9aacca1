"""GEMM in float: one FMA for each k, ascending, of exact float32 operands.

For elements that are no small integers (E4M3, E5M2, E3M2), for weights quantized and activations
not, and for weights that were not quantized either. code * scale is exact in float32, of a weight
as of an activation, so the result is that of a float32 GEMM of the dequantized matrices, bit for
bit; only the tensor scales wait for the end.

A task decodes its columns once, into a panel of float32 that all its row tiles read: decoding takes
about twelve instructions a vector, on the ports where a tile of eight rows would have eight FMAs.
A single row decodes on the way instead, for nothing would read its panel again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import decode
from lbcompiler.targets.cpu.gemm import (
    Body,
    Config,
    Output,
    Place,
    Tile,
    chunk_rows,
    emit_gemm,
)
from lbcompiler.targets.cpu.gemm_integer import load_planes, load_scales, weight_arguments
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, fma, kernel, let, root_block, splat
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, Isa
from lbcompiler.targets.cpu.layout import COLUMNS, tiles

STEP = 4  # k's that the innermost loop takes at a time
PANEL_BYTES = 1 << 19  # of a task's activations beside its panel: half of a Zen 4 core's L2


@dataclass(frozen=True)
class FloatGemm:
    """The generator for one pair of formats, None being float32, and one instruction set."""

    isa: Isa
    weight: BlockFormat | None
    act: BlockFormat | None

    def config(self, n: int, k: int) -> Config:
        """The default tiles for a shape."""
        shapes = {
            AVX512_VNNI: (Tile(8, 2), Tile(4, 2), Tile(1, 4)),
            AVX2: (Tile(5, 1), Tile(1, 2)),
        }.get(self.isa, (Tile(2, 1), Tile(1, 1)))
        return Config(shapes, chunk_rows(4 * k, n, PANEL_BYTES))

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

        def start(tile: Tile, column: Expr) -> Body:
            return weights.start(tile, column, x, k)

        with root_block():
            emit_gemm(self.isa, config, m, Output(y, n, tuple(scales), b, epilogue), start)

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

    def start(self, _: Tile, column: Expr, x: Any, k: int) -> Body:
        def read(position: Expr, v: int) -> Expr:
            tile, lane = divmod(v * self.isa.lanes, COLUMNS)
            return self.w[column + tile, position, at(lane, self.isa.lanes)]

        return lambda place: _multiply(self.isa, place, x, k, read)


@dataclass(frozen=True)
class _Blocks:
    """Block-scaled weights."""

    isa: Isa
    fmt: BlockFormat
    planes: list[Any]
    scales: Any

    def start(self, tile: Tile, column: Expr, x: Any, k: int) -> Body:
        width = tile.columns * COLUMNS
        if tile.rows == 1:
            return lambda place: self._decode(
                width,
                column,
                k,
                lambda position, vectors: _add_outer(self.isa, place, x, position, vectors),
            )
        panel = T.alloc_buffer((k, width), "float32")

        def keep(position: Expr, vectors: list[Expr]) -> None:
            for v, vector in enumerate(vectors):
                T.buffer_store(panel, vector, [position, at(v * self.isa.lanes, self.isa.lanes)])

        self._decode(width, column, k, keep)

        def read(position: Expr, v: int) -> Expr:
            return panel[position, at(v * self.isa.lanes, self.isa.lanes)]

        return lambda place: _multiply(self.isa, place, x, k, read)

    def _decode(self, width: int, column: Expr, k: int, use: "_Use") -> None:
        """`use(position, vectors)` for every k of `width` columns: whole blocks, the short one."""
        if k // self.fmt.block:
            with T.serial(k // self.fmt.block) as block:
                IRBuilder.name("block", block)
                self._block(width, column, block, self.fmt.block, use)
        if k % self.fmt.block:
            self._block(width, column, k // self.fmt.block, k % self.fmt.block, use)

    def _block(self, width: int, column: Expr, block: Expr, count: int, use: "_Use") -> None:
        inverse = splat(1.0 / decode.divisor(self.fmt.element), "float32", self.isa.lanes)
        factors = []
        for v in range(width // self.isa.lanes):
            stored = load_scales(self.scales, column, block, v, self.isa)
            factors.append(bound(decode.scale_value(self.fmt.scale, stored) * inverse))
        groups, start = decode.group_count(self.fmt.element), block * self.fmt.block
        if count // groups:
            with T.serial(count // groups) as i:
                self._loads(column, let(start + i * groups), groups, factors, use)
        if count % groups:
            rest = count // groups * groups
            self._loads(column, start + rest, count % groups, factors, use)

    def _loads(
        self, column: Expr, start: Expr, count: int, factors: list[Expr], use: "_Use"
    ) -> None:
        """The first `count` k's of one load of each plane."""
        index = start // decode.group_count(self.fmt.element)
        decoded = [
            self._decoded(load_planes(self.planes, column, index, v, self.isa, 1), factor)
            for v, factor in enumerate(factors)
        ]
        for i in range(count):
            use(start + i, [bound(vectors[i]) for vectors in decoded])

    def _decoded(self, planes: list[list[Expr]], factor: Expr) -> list[Expr]:
        codes = decode.stored_codes(self.fmt.element, planes)
        return [decode.real_value(self.isa, self.fmt.element, code) * factor for code in codes]


_Use = Callable[[Expr, list[Expr]], None]


def _multiply(isa: Isa, place: Place, x: Any, k: int, read: Callable[[Expr, int], Expr]) -> None:
    """All of K, from columns that are float32 already: `read(position, vector)`."""

    def step(start: Expr, count: int) -> None:
        with T.unroll(count) as i:
            position = start + i
            vectors = range(place.tile.columns * COLUMNS // isa.lanes)
            _add_outer(isa, place, x, position, [let(read(position, v)) for v in vectors])

    if k // STEP:
        with T.serial(k // STEP) as i:
            step(let(i * STEP), STEP)
    if k % STEP:
        step(k // STEP * STEP, k % STEP)


def _add_outer(isa: Isa, place: Place, x: Any, k: Expr, vectors: list[Expr]) -> None:
    """accumulators[r][v] += x[r, k] * vectors[v], one FMA each."""
    for r in range(place.tile.rows):
        value = let(splat(x[place.row + r, k], "float32", isa.lanes))
        for v, vector in enumerate(vectors):
            slot = place.slot(isa, r, v)
            total = fma(value, vector, place.accumulators[slot])
            T.buffer_store(place.accumulators, total, [slot])
