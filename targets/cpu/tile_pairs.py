"""Operands of float formats as AMX reads them: pairs of bfloat16, 32 k's a tile.

Activations come from `quantize` as such pairs, and only have to lie tile after tile; weights are
decoded as for `vdpbf16ps`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx
from lbcompiler.targets.cpu.decode import byte_words, exponents_of_words
from lbcompiler.targets.cpu.float_activations import PairRows, pair_count
from lbcompiler.targets.cpu.float_weights import Decode
from lbcompiler.targets.cpu.gemm import Place, Task, each_part
from lbcompiler.targets.cpu.gemm_tiles import Rows, Strip, TileGemm
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    at,
    bits_of,
    bound,
    cast,
    fma,
    lanes_at,
    let,
    load,
    prefetch,
    shift_right,
    splat,
)
from lbcompiler.targets.cpu.layout import COLUMNS, padded
from lbcompiler.targets.cpu.packed_weights import load_scales

BLOCK = 32  # k's of a tile
PAIRS = BLOCK // 2
LINE_ROWS = 4  # of 16 bytes in a line of the cache


def packed_pairs(x: PairRows, m: Expr, k: int, gemm: TileGemm) -> Rows:
    """Emits the copies of m rows of k; behind the last it comes again, up to a tile's rows."""

    def emit(codes: Any, strip: Strip) -> None:
        def copy(block: Expr, valid: int) -> None:
            with T.serial(amx.ROWS) as r:
                start = let((strip.panel * gemm.depth + block) * PAIRS)
                row = let(tirx.min(strip.first + r, m - 1))
                value = load(x.pairs, (row,), start, PAIRS, valid)
                lanes = at(r * PAIRS, PAIRS)
                T.buffer_store(codes, value, [strip.panel, strip.tile, block, strip.part, lanes])

        _each_block(gemm, strip.panel, gemm.count(strip.panel), pair_count(k), PAIRS, copy)

    return gemm.pack(m, "int32", amx.ROWS * PAIRS, emit)


@dataclass(frozen=True)
class PairTilePanel:
    """codes int32 (span, depth * 16 * 16); see `gemm_tiles.Panel`."""

    weights: Decode
    task: Task
    k: int
    gemm: TileGemm
    codes: Any

    @classmethod
    def hold(cls, weights: Decode, task: Task, k: int, gemm: TileGemm) -> "PairTilePanel":
        """For the depth and the span of a GEMM over k."""
        codes = T.alloc_buffer((gemm.span, gemm.depth * PAIRS * COLUMNS), "int32")
        return cls(weights, task, k, gemm, codes)

    def decode(self, panel: Expr, count: Expr, j: Expr, columns: int) -> None:
        """Makes `count` blocks of a panel, for `columns` column tiles of the task from j on."""
        whole = padded(self.k, self.weights.fmt.block)
        with T.serial(columns) as v:
            column = bound(self.task.column + j + v)

            def fill(block: Expr, valid: int) -> None:
                first = bound((panel * self.gemm.depth + block) * BLOCK)
                self._ask_for_next(v, columns, column, panel, block)
                if self._are_bytes:
                    self._fill_bytes(v, column, block, first)
                    return

                def keep(position: Expr, high: list[Expr], low: list[Expr]) -> None:
                    pair = bits_of(high[0]) | shift_right(bits_of(low[0]), 16)
                    row = block * PAIRS + (position - first) // 2
                    T.buffer_store(self.codes, pair, [v, at(row * COLUMNS, COLUMNS)])

                self.weights.emit_pairs(1, column, first, valid, keep)
                for i in range(valid // 2, PAIRS):
                    lanes = at((block * PAIRS + i) * COLUMNS, COLUMNS)
                    T.buffer_store(self.codes, splat(0, "int32", COLUMNS), [v, lanes])

            _each_block(self.gemm, panel, count, whole, BLOCK, fill)

    def first(self, v: int, block: Expr) -> Any:
        """The first element of the tile of column tile j + v."""
        return self.codes[v, block * (PAIRS * COLUMNS)]

    def _ask_for_next(self, v: Expr, columns: int, column: Expr, panel: Expr, block: Expr) -> None:
        """Begin to bring in the same block of the next column tile, behind the last one of the next
        panel's first, and behind the last panel of the next task's.
        """
        number = bound((panel + 1) * self.gemm.depth + block)
        is_last, ends = tirx.EQ(v + 1, columns), number >= self.gemm.blocks
        back = bound(tirx.if_then_else(tirx.all(is_last, tirx.Not(ends)), columns, 0))
        number = bound(
            tirx.if_then_else(
                is_last,
                tirx.if_then_else(ends, block, number),
                number - self.gemm.depth,
            )
        )
        for plane in self.weights.planes:
            rows = int(plane.shape[1]) * BLOCK // padded(self.k, BLOCK)  # of 16 bytes
            for row in range(0, rows, LINE_ROWS):
                prefetch(plane[column + 1 - back, number * rows + row, 0])

    @property
    def _are_bytes(self) -> bool:
        """Whether codes of a byte each lie block after block of a tile: a faster way to decode."""
        fmt = self.weights.fmt
        is_small_float = fmt.element.integer_multiplier is None and fmt.element.bits == 8
        return is_small_float and fmt.scale == "e8m0" and fmt.block == BLOCK

    def _fill_bytes(self, v: Expr, column: Expr, block: Expr, first: Expr) -> None:
        """The block of a tile that begins with k `first`, two k's at a time."""
        weights = self.weights
        exponent = exponents_of_words(
            load_scales(weights.scales, column, first // BLOCK, 0, weights.isa)
        )
        beside = [lane + COLUMNS * (1 - k) for lane in range(COLUMNS) for k in (0, 1)]
        for i in range(PAIRS):
            both = weights.planes[0][column, first + 2 * i, at(0, 2 * COLUMNS)]
            code = lanes_at(cast("int16", both), beside)
            words = byte_words(weights.fmt.element, bound(code), exponent)
            pair = tirx.reinterpret(f"int32x{COLUMNS}", words)
            T.buffer_store(self.codes, pair, [v, at((block * PAIRS + i) * COLUMNS, COLUMNS)])


def add_as_tiles(place: Place, x: PairRows, weights: Decode, k: int) -> None:
    """What tiles add to the sums of one row, in their order, by FMAs: products of a block's even
    k's, those of its odd ones, then both.
    """
    columns = place.tile.columns
    sums = Registers(2 * columns, "float32", COLUMNS)

    def use(position: Expr, high: list[Expr], low: list[Expr]) -> None:
        for i, vectors in enumerate((high, low)):
            value = let(splat(x.value(place.row, position + i), "float32", COLUMNS))
            for v, weight in enumerate(vectors):
                sums[2 * v + i] = fma(value, weight, sums[2 * v + i])

    def add(first: Expr, count: int) -> None:
        for i in range(2 * columns):
            sums[i] = splat(0.0, "float32", COLUMNS)
        weights.emit_pairs(columns, place.column, first, count, use)
        for v in range(columns):
            place.sums[v] = place.sums[v] + bound(sums[2 * v] + sums[2 * v + 1])

    each_part(k, BLOCK, add)


def _each_block(
    gemm: TileGemm,
    panel: Expr,
    count: Expr,
    total: int,
    size: int,
    emit: Callable[[Expr, int], None],
) -> None:
    """`emit(block, valid)` for the blocks of a panel, where K has `total` of what a block has
    `size`.
    """
    left = total % size
    with T.serial(count) as block:
        IRBuilder.name("block", block)
        if not left:
            emit(block, size)
            return
        with T.If(panel * gemm.depth + block < gemm.blocks - 1):
            with T.Then():
                emit(block, size)
            with T.Else():
                emit(block, left)
