"""The loop nest that every GEMM of the CPU target has, around a body that computes one register
tile.

    for task in parallel(row chunks x column groups)      row chunk outermost: its activations stay
    in L2
        start                                              what the whole chunk can share
        for row tile in chunk
            accumulators = 0                               rows x columns vectors, in registers
            body                                           all of K, blocks ascending
            y = epilogue(accumulators), stored

M is symbolic. The last row tile and the last column group overlap the ones before them, so that no
tile is ragged as long as M is at least its height; a smaller M takes the next lower tile. A value
is computed by the same operations in the same order whatever tile it falls into: the result does
not depend on the config, the instruction set or the threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.epilogue import ACTIVATIONS
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, fma, let, load, splat, store
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS, tiles


@dataclass(frozen=True)
class Tile:
    """Accumulators of one register tile: `rows` times `columns` tiles of 16."""

    rows: int
    columns: int


@dataclass(frozen=True)
class Config:
    """Register tiles, tallest first, the last of one row; a task takes `chunk` rows at a time."""

    tiles: tuple[Tile, ...]
    chunk: int = 96


@dataclass(frozen=True)
class Place:
    """Where a body works: its accumulators, the first row and the first column tile."""

    tile: Tile
    accumulators: Any
    row: Expr
    column: Expr

    def slot(self, isa: Isa, r: int, v: int) -> Any:
        """The index of accumulator vector v of row r."""
        vectors = self.tile.columns * COLUMNS // isa.lanes
        return at((r * vectors + v) * isa.lanes, isa.lanes)


@dataclass(frozen=True)
class Output:
    """y (M, n), and what the accumulators go through on the way there."""

    y: Any
    n: int
    scales: tuple[tuple[Any, bool], ...] = ()  # tensor scales: (buffer, one a row)
    bias: Any = None
    activation: str = "none"


Body = Callable[[Place], None]  # emits the sums of one register tile
Start = Callable[[Tile, Expr], Body]  # emits what a task does first, given its tile and column


def chunk_rows(row_bytes: int, n: int, limit: int) -> int:
    """Rows a task takes: what stays in L2; fewer if columns alone cannot busy the threads."""
    fitting = max(16, min(256, limit // row_bytes))
    return fitting if tiles(n) >= 16 else min(fitting, 48)


def tallest(row_bytes: int) -> int:
    """Rows of a register tile on AVX-512: 12 of 32 registers for sums.

    Eight where the rows lie at a multiple of 2 KiB: their lines then share a set of the L1 cache,
    which has eight ways (measured on Zen 4: 12 rows 190, 8 rows 264 GOP/s at K = 4096).
    """
    return 12 if row_bytes % 2048 else 8


def emit_gemm(isa: Isa, config: Config, m: Expr, output: Output, start: Start) -> None:
    """The loop nest for every tile height, the tallest that fits M first."""
    first, *lower = config.tiles
    if not lower:
        _emit_grid(isa, first, config.chunk, m, output, start)
        return
    with T.If(m >= first.rows):
        with T.Then():
            _emit_grid(isa, first, config.chunk, m, output, start)
        with T.Else():
            emit_gemm(isa, Config(tuple(lower), config.chunk), m, output, start)


def _emit_grid(isa: Isa, tile: Tile, chunk: int, m: Expr, output: Output, start: Start) -> None:
    count = tiles(output.n)
    tile = Tile(tile.rows, min(tile.columns, count))
    groups = -(-count // tile.columns)
    row_tiles = tirx.ceildiv(m, tile.rows)
    height = max(1, chunk // tile.rows)
    with T.parallel(tirx.ceildiv(row_tiles, height) * groups) as task:
        IRBuilder.name("task", task)
        first = let(task // groups * height)
        column = let(tirx.min(task % groups * tile.columns, count - tile.columns))
        body = start(tile, column)
        with T.serial(tirx.min(height, row_tiles - first)) as i:
            row = let(tirx.min((first + i) * tile.rows, m - tile.rows))
            size = tile.rows * tile.columns * COLUMNS
            accumulators = T.alloc_buffer((size,), "float32", scope="local")
            for lane in range(0, size, isa.lanes):
                zero = splat(0.0, "float32", isa.lanes)
                T.buffer_store(accumulators, zero, [at(lane, isa.lanes)])
            place = Place(tile, accumulators, row, column)
            body(place)
            _emit_output(isa, place, output)


def _emit_output(isa: Isa, place: Place, output: Output) -> None:
    """From the accumulators to y, row by row: a loop, for the activation's code is long."""
    tile, size = place.tile, place.tile.rows * place.tile.columns * COLUMNS
    finished = T.alloc_buffer((size,), "float32", scope="local")
    for start in range(0, size, isa.lanes):
        T.buffer_store(finished, place.accumulators[at(start, isa.lanes)], [at(start, isa.lanes)])
    ragged = output.n % COLUMNS
    with T.serial(tile.rows) as r:
        scale = _tensor_scale(output, place.row + r)
        for j in range(tile.columns):
            values = [
                finished[at((r * tile.columns + j) * COLUMNS + v, isa.lanes)]
                for v in range(0, COLUMNS, isa.lanes)
            ]
            if ragged and j == tile.columns - 1:
                with T.If(place.column + j == tiles(output.n) - 1):
                    with T.Then():
                        _emit_columns(place, output, r, j, values, scale, ragged)
                    with T.Else():
                        _emit_columns(place, output, r, j, values, scale, COLUMNS)
            else:
                _emit_columns(place, output, r, j, values, scale, COLUMNS)


def _emit_columns(
    place: Place, output: Output, r: Expr, j: int, values: list[Expr], scale: Expr, width: int
) -> None:
    """Finish and store the first `width` columns of tile j of row r."""
    n0 = (place.column + j) * COLUMNS
    for v, value in enumerate(values):
        lanes = COLUMNS // len(values)
        valid = min(lanes, width - v * lanes)
        if valid <= 0:
            return
        start = n0 + v * lanes
        bias = None if output.bias is None else load(output.bias, (), start, lanes, valid)
        y = ACTIVATIONS[output.activation](bound(_affine(value, scale, bias)))
        store(output.y, (place.row + r,), start, y, valid)


def _affine(value: Expr, scale: Expr | None, bias: Expr | None) -> Expr:
    """value * scale + bias with one rounding when there are both."""
    if scale is None:
        return value if bias is None else value + bias
    spread = tirx.Broadcast(scale, value.ty.dtype.lanes)
    return value * spread if bias is None else fma(value, spread, bias)


def _tensor_scale(output: Output, row: Expr) -> Expr | None:
    """The product of weight's and row's tensor scale, None if there is neither."""
    factors = [buffer[row, 0] if by_row else buffer[0] for buffer, by_row in output.scales]
    if not factors:
        return None
    return bound(factors[0] if len(factors) == 1 else factors[0] * factors[1])
