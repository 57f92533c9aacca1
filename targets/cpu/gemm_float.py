"""GEMM in float: one FMA for each k, ascending, of exact float32 operands.

For elements that are no small integers (E4M3, E5M2, E3M2), for weights quantized and activations
not, and for weights that were not quantized either. code * scale is exact in float32, of a weight
as of an activation, so the result is that of a float32 GEMM of the dequantized matrices, bit for
bit; only the tensor scales wait for the end.

A task decodes its columns once, a panel of k's at a time, which all its row tiles read: decoding
takes about twelve instructions a vector, on the ports where a tile of eight rows would have eight
FMAs. A panel of few rows is a short one of many columns, and a single row decodes on the way, for
nothing would read its panel again.

Where both operands are quantized and the instruction set has `vdpbf16ps`, panels hold pairs of
bfloat16, and two FMAs are one instruction. It does them in the order of the two halves, so the
result is the same; a task with a scale that is not plain (float_activations.py) takes the way of
a single row instead. AMX multiplies the same pairs in tiles of 32 k's, from two rows on: there the
sum goes from tile to tile, in another order, which a single row keeps (`tile_pairs.add_as_tiles`).
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu.dot_bf16 import dot_bf16, importing_dot_bf16
from lbcompiler.targets.cpu.float_activations import FloatRows, PairRows, pair_count
from lbcompiler.targets.cpu.float_weights import Decode, Dense
from lbcompiler.targets.cpu.gemm import (
    SMALL_M,
    Body,
    Choices,
    Config,
    EachTile,
    Output,
    Place,
    Task,
    Tile,
    Way,
    each_part,
    emit_gemm,
    one_by_one,
    space,
)
from lbcompiler.targets.cpu.gemm_tiles import CHOICES as TILE_CHOICES
from lbcompiler.targets.cpu.gemm_tiles import Rows, TileGemm, tile_config, tile_ways
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bits_of,
    fma,
    kernel,
    lanes_of,
    let,
    root_block,
    shift_right,
    splat,
)
from lbcompiler.targets.cpu.isa import AVX2, AVX512_AMX, AVX512_BF16, AVX512_VNNI, GENERIC, Isa
from lbcompiler.targets.cpu.layout import COLUMNS, tiles
from lbcompiler.targets.cpu.packed_weights import weight_arguments
from lbcompiler.targets.cpu.tile_pairs import BLOCK, PairTilePanel, add_as_tiles, packed_pairs

FEW_DEPTH = 32  # k's of a panel for few rows: it only has to outlast its task's rows
CHOICES = {
    **dict.fromkeys(
        (AVX512_AMX, AVX512_BF16, AVX512_VNNI),
        Choices(
            (2, 3, 4, 6, 8, 12),
            (1, 2, 3, 4, 6),
            Config(rows=8, columns=3, depth=512, chunk=256, few_columns=4, small_columns=4),
        ),
    ),
    AVX2: Choices(
        (2, 4, 5, 6),
        (1, 2),
        Config(rows=5, columns=1, depth=256, chunk=60, few_columns=2, small_columns=2),
    ),
    GENERIC: Choices(
        (1, 2, 4),
        (1, 2),
        Config(rows=2, columns=1, depth=256, chunk=64, few_columns=1, small_columns=1),
    ),
}
PAIRS_FEW_COLUMNS = 6  # of bfloat16 pairs, whose sums leave more of the time to decoding


@dataclass(frozen=True)
class FloatGemm:
    """The generator for one pair of formats, None being float32, and one instruction set."""

    isa: Isa
    weight: BlockFormat | None
    act: BlockFormat | None

    @property
    def takes_pairs(self) -> bool:
        """Whether activations come as pairs of bfloat16."""
        return (self.isa.has_bf16 or self.isa.has_tiles) and self.act is not None

    @property
    def takes_tiles(self) -> bool:
        """Whether AMX multiplies: a tile holds whole blocks of weights."""
        if self.act is None or self.weight is None:
            return False
        return self.isa.has_tiles and BLOCK % self.weight.block == 0

    def config(self, n: int, k: int) -> Config:
        """The default for a shape."""
        default = self._choices.default
        return tile_config(default, n, k) if self.takes_tiles else default

    def space(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        """The fields of `Config` that matter for M rows, and what is worth trying."""
        choices = replace(self._choices, default=self.config(n, k))
        return space(choices, SMALL_M if self.takes_tiles and m > 1 else m, k)

    @property
    def _choices(self) -> Choices:
        choices = CHOICES[self.isa]
        if self.takes_tiles:
            default = TILE_CHOICES.default
            small = choices.default.small_columns
            return replace(TILE_CHOICES, default=replace(default, small_columns=small))
        if not self.takes_pairs:
            return choices
        return replace(choices, default=replace(choices.default, few_columns=PAIRS_FEW_COLUMNS))

    def build(
        self, n: int, k: int, *, bias: bool, epilogue: str, config: Config | None = None
    ) -> Any:
        """PrimFunc(x[, row_scales], w_codes.., w_scales[, w_tensor_scale][, bias], y).

        x f32 (M, k) or the operands of `PairRows`, row_scales f32 (M, 1), codes and scales as
        layout.py has them for groups of one k (float weights: one argument w f32 (T, k, 16)
        instead), w_tensor_scale f32 (1,), bias f32 (n,), y f32 (M, n).
        """
        with kernel() as builder:
            self._emit(n, k, bias, epilogue, config or self.config(n, k))
        return builder.get()

    def _emit(self, n: int, k: int, bias: bool, epilogue: str, config: Config) -> None:
        m = tirx.Var("m", "int64")
        pairs = None
        if self.act is not None and self.takes_pairs:
            pairs = PairRows.declare(self.act, m, k)
        x = FloatRows.declare(m, k) if pairs is None else pairs
        row_scales = w_tensor_scale = None
        if self.act is not None and self.act.has_tensor_scale:
            row_scales = T.arg("row_scales", T.buffer((m, 1), "float32"))
        coded = None if self.weight is None else self._coded(self.weight, n, k)
        weights = self._dense(n, k) if coded is None else coded
        if self.weight is not None and self.weight.has_tensor_scale:
            w_tensor_scale = T.arg("w_tensor_scale", T.buffer((1,), "float32"))
        b = T.arg("bias", T.buffer((n,), "float32")) if bias else None
        y = T.arg("y", T.buffer((m, n), "float32"))

        def directly(place: Place) -> None:
            zero = tirx.const(0, "int64")
            weights.emit(place.tile.columns, place.column, zero, k, partial(_add_outer, place, x))

        def one(_task: Task, each_tile: EachTile) -> None:
            each_tile(directly)

        def panels(depth: int) -> Body:
            def body(task: Task, each_tile: EachTile) -> None:
                if pairs is None or coded is None:
                    _emit_panels(task, each_tile, weights, x, k, depth)
                    return
                with T.If((pairs.unusual(task) | coded.unusual(task)) == 0):
                    with T.Then():
                        _emit_pairs(task, each_tile, coded, pairs, k, depth)
                    with T.Else():
                        each_tile(directly)

            return body

        if self.takes_tiles and pairs is not None and coded is not None:
            ways = _tile_ways(m, pairs, coded, k, config)
        else:
            tile = Tile(config.rows, config.columns)
            ways = [Way(max(SMALL_M, tile.rows), tile, config.chunk, panels(config.depth))]
            if config.rows > 1:  # the tile of one row has no tail
                few = Tile(2, config.few_columns)
                ways.append(Way(2, few, SMALL_M, panels(FEW_DEPTH)))
                ways.append(Way(1, Tile(1, config.small_columns), 1, one))
        around: AbstractContextManager[None] = nullcontext()
        if self.isa.has_bf16 and pairs is not None:
            around = importing_dot_bf16()
        output = Output(y, n, row_scales, w_tensor_scale, b, epilogue)
        with root_block(), around:
            emit_gemm(self.isa, m, output, ways)

    def _dense(self, n: int, k: int) -> Dense:
        return Dense(self.isa, T.arg("w", T.buffer((tiles(n), k, COLUMNS), "float32")))

    def _coded(self, fmt: BlockFormat, n: int, k: int) -> Decode:
        planes, w_scales = weight_arguments(fmt, n, k, 1)
        return Decode(self.isa, fmt, planes, w_scales)


Activations = FloatRows | PairRows


def _emit_panels(
    task: Task,
    each_tile: EachTile,
    weights: Decode | Dense,
    x: Activations,
    k: int,
    depth: int,
) -> None:
    """All of K in panels of float32, decoded once for the task."""
    depth = weights.whole(depth)
    panel = weights.panel(task, min(depth, k))

    def emit(first: Expr, count: int) -> None:
        panel.fill(first, count)
        each_tile(lambda place: panel.each(first, count, partial(_add_outer, place, x)))

    each_part(k, depth, emit)


def _emit_pairs(
    task: Task, each_tile: EachTile, weights: Decode, x: PairRows, k: int, depth: int
) -> None:
    """All of K in panels of bfloat16 pairs, decoded once for the task."""
    isa, depth = weights.isa, weights.whole(depth)
    panel = T.alloc_buffer((pair_count(min(depth, k)), task.tile.columns * COLUMNS), "int32")

    def emit(first: Expr, count: int) -> None:
        def keep(position: Expr, high: list[Expr], low: list[Expr]) -> None:
            for v, (a, b) in enumerate(zip(high, low, strict=True)):
                pair = bits_of(a) | shift_right(bits_of(b), 16)
                lanes = at(v * isa.lanes, isa.lanes)
                T.buffer_store(panel, pair, [(position - first) // 2, lanes])

        weights.emit_pairs(task.tile.columns, task.column, first, count, keep)

        def add(place: Place) -> None:
            with T.serial(pair_count(count)) as i:
                vectors = [
                    let(panel[i, at(v * isa.lanes, isa.lanes)]) for v in range(place.vectors(isa))
                ]
                for r in range(place.tile.rows):
                    pair = let(splat(x.pairs[place.row + r, first // 2 + i], "int32", isa.lanes))
                    for v, vector in enumerate(vectors):
                        slot = place.slot(isa, r, v)
                        place.sums[slot] = dot_bf16(place.sums[slot], vector, pair)

        each_tile(add)

    each_part(k, depth, emit)


def _tile_ways(m: Expr, x: PairRows, weights: Decode, k: int, config: Config) -> list[Way]:
    """By AMX; a single row by FMAs in the same order, which read weights sooner."""
    blocks = -(-k // BLOCK)
    depth = max(1, min(config.depth // BLOCK, blocks))

    def pack(gemm: TileGemm) -> Rows:
        return packed_pairs(x, m, k, gemm)

    def inside(gemm: TileGemm, rows: Rows, task: Task) -> None:
        with T.If((x.unusual(task) | weights.unusual(task)) == 0):
            with T.Then():
                gemm.emit(rows, PairTilePanel.hold(weights, task, k, gemm), task)
            with T.Else():
                one_by_one(task, lambda place: add_as_tiles(place, x, weights, k))

    def one(_task: Task, each_tile: EachTile) -> None:
        each_tile(lambda place: add_as_tiles(place, x, weights, k))

    ways = tile_ways(config, BLOCK, blocks, depth, 2, pack, inside)
    return [*ways, Way(1, Tile(1, config.small_columns), 1, one)]


def _add_outer(place: Place, x: Activations, k: Expr, vectors: list[Expr]) -> None:
    """sums[r][v] += x[r, k] * vectors[v], one FMA each."""
    lanes = lanes_of(vectors[0])
    for r in range(place.tile.rows):
        value = let(splat(x.value(place.row + r, k), "float32", lanes))
        for v, vector in enumerate(vectors):
            slot = r * len(vectors) + v
            place.sums[slot] = fma(value, vector, place.sums[slot])
