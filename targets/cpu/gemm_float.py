"""GEMM in float: one FMA for each k, ascending, of exact float32 operands.

For elements that are no small integers (E4M3, E5M2, E3M2), for weights quantized and activations
not, and for weights that were not quantized either. code * scale is exact in float32, of a weight
as of an activation, so the result is that of a float32 GEMM of the dequantized matrices, bit for
bit; only the tensor scales wait for the end.

A task decodes its columns once, a panel of k's at a time, which all its row tiles read: decoding
takes about twelve instructions a vector, on the ports where a tile of eight rows would have eight
FMAs. Few rows decode on the way instead, for nothing would read their panel again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import decode
from lbcompiler.targets.cpu.gemm import Config, EachTile, Output, Place, Task, emit_gemm, space
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, fma, kernel, let, root_block, splat
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, GENERIC, Isa
from lbcompiler.targets.cpu.layout import COLUMNS, tiles
from lbcompiler.targets.cpu.packed_weights import load_planes, load_scales, weight_arguments

STEP = 4  # k's that the innermost loop takes at a time
SHAPES = {
    AVX512_VNNI: ((4, 6, 8, 12), (1, 2, 3)),
    AVX2: ((2, 4, 5, 6), (1, 2)),
    GENERIC: ((1, 2, 4), (1, 2)),
}
DEFAULTS = {
    AVX512_VNNI: Config(rows=8, columns=2, depth=256, chunk=96, small_columns=4),
    AVX2: Config(rows=5, columns=1, depth=256, chunk=60, small_columns=2),
    GENERIC: Config(rows=2, columns=1, depth=256, chunk=64, small_columns=1),
}


@dataclass(frozen=True)
class FloatGemm:
    """The generator for one pair of formats, None being float32, and one instruction set."""

    isa: Isa
    weight: BlockFormat | None
    act: BlockFormat | None

    def config(self, n: int, k: int) -> Config:
        """The default for a shape."""
        return DEFAULTS[self.isa]

    def space(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        """The fields of `Config` that matter for M rows, and what is worth trying."""
        return space(SHAPES[self.isa], DEFAULTS[self.isa], m, k)

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

        def body(task: Task, each_tile: EachTile) -> None:
            if task.tile.rows < config.rows:
                each_tile(lambda place: weights.add(place, x, k))
            else:
                weights.add_panels(task, each_tile, x, k, config.depth)

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

    def add(self, place: Place, x: Any, k: int) -> None:
        zero = tirx.const(0, "int64")
        _multiply(self.isa, place, x, zero, k, self._reader(place.column))

    def add_panels(self, task: Task, each_tile: EachTile, x: Any, k: int, depth: int) -> None:
        read = self._reader(task.column)
        _each_panel(
            k,
            depth,
            lambda first, count: each_tile(
                lambda place: _multiply(self.isa, place, x, first, count, read)
            ),
        )

    def _reader(self, column: Expr) -> "_Read":
        def read(position: Expr, v: int) -> Expr:
            tile, lane = divmod(v * self.isa.lanes, COLUMNS)
            return self.w[column + tile, position, at(lane, self.isa.lanes)]

        return read


@dataclass(frozen=True)
class _Blocks:
    """Block-scaled weights."""

    isa: Isa
    fmt: BlockFormat
    planes: list[Any]
    scales: Any

    def add(self, place: Place, x: Any, k: int) -> None:
        """All of K, weights decoded on the way."""

        def use(position: Expr, vectors: list[Expr]) -> None:
            _add_outer(self.isa, place, x, position, vectors)

        self._decode(place.tile.columns * COLUMNS, place.column, tirx.const(0, "int64"), k, use)

    def add_panels(self, task: Task, each_tile: EachTile, x: Any, k: int, depth: int) -> None:
        """All of K, in panels that are decoded once for the task."""
        width = task.tile.columns * COLUMNS
        depth = max(self.fmt.block, depth // self.fmt.block * self.fmt.block)
        panel = T.alloc_buffer((min(depth, k), width), "float32")

        def emit(first: Expr, count: int) -> None:
            def keep(position: Expr, vectors: list[Expr]) -> None:
                for v, vector in enumerate(vectors):
                    lanes = at(v * self.isa.lanes, self.isa.lanes)
                    T.buffer_store(panel, vector, [position - first, lanes])

            def read(position: Expr, v: int) -> Expr:
                return panel[position - first, at(v * self.isa.lanes, self.isa.lanes)]

            self._decode(width, task.column, first, count, keep)
            each_tile(lambda place: _multiply(self.isa, place, x, first, count, read))

        _each_panel(k, depth, emit)

    def _decode(self, width: int, column: Expr, first: Expr, count: int, use: "_Use") -> None:
        """`use(position, vectors)` for `count` k's of `width` columns, `first` begins a block."""
        start, whole = let(first // self.fmt.block), count // self.fmt.block
        if whole:
            with T.serial(whole) as i:
                IRBuilder.name("block", i)
                self._block(width, column, let(start + i), self.fmt.block, use)
        if count % self.fmt.block:
            self._block(width, column, start + whole, count % self.fmt.block, use)

    def _block(self, width: int, column: Expr, block: Expr, count: int, use: "_Use") -> None:
        inverse = splat(1.0 / decode.divisor(self.fmt.element), "float32", self.isa.lanes)
        factors = []
        for v in range(width // self.isa.lanes):
            stored = load_scales(self.scales, column, block, v, self.isa)
            factors.append(bound(decode.scale_value(self.isa, self.fmt.scale, stored) * inverse))
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
_Read = Callable[[Expr, int], Expr]


def _each_panel(k: int, depth: int, emit: Callable[[Expr, int], None]) -> None:
    """`emit(first, count)` for `depth` k's at a time, and for the rest."""
    if k // depth:
        with T.serial(k // depth) as number:
            IRBuilder.name("panel", number)
            emit(let(number * depth), depth)
    if k % depth:
        emit(tirx.const(k // depth * depth, "int64"), k % depth)


def _multiply(isa: Isa, place: Place, x: Any, first: Expr, count: int, read: _Read) -> None:
    """k's from `first` on, of columns that are float32 already: `read(position, vector)`."""

    def step(start: Expr, count: int) -> None:
        with T.unroll(count) as i:
            position = start + i
            vectors = range(place.tile.columns * COLUMNS // isa.lanes)
            _add_outer(isa, place, x, position, [let(read(position, v)) for v in vectors])

    if count // STEP:
        with T.serial(count // STEP) as i:
            step(let(first + i * STEP), STEP)
    if count % STEP:
        step(first + count // STEP * STEP, count % STEP)


def _add_outer(isa: Isa, place: Place, x: Any, k: Expr, vectors: list[Expr]) -> None:
    """sums[r][v] += x[r, k] * vectors[v], one FMA each."""
    for r in range(place.tile.rows):
        value = let(splat(x[place.row + r, k], "float32", isa.lanes))
        for v, vector in enumerate(vectors):
            slot = place.slot(isa, r, v)
            place.sums[slot] = fma(value, vector, place.sums[slot])
