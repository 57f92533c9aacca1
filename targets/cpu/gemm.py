"""The loop nest that every GEMM of the CPU target has, around what computes one register tile.

    for task in parallel(row chunks x column groups)      row chunk outermost: its activations stay
    in L2
        sums = 0                                           of the task, in L1
        for panel of `depth` k's
            weights of the panel, decoded                  stay in L1 for all rows of the chunk
            for row tile in chunk
                sums += products                           rows x columns vectors, in registers
        y = epilogue(sums), stored

M is symbolic, and a kernel holds three such nests: for one row, for few, and for SMALL_M or more.
The last row tile and the last column group overlap the ones before them: no tile is ragged. A value
is computed by the same operations in the same order, blocks of k ascending, whatever tile and panel
it falls into: the result does not depend on the config or the threads, nor on the instruction set
but where gemm_tiles.py says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.epilogue import ACTIVATIONS
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    at,
    bound,
    fma,
    let,
    load,
    splat,
    store,
)
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS, tiles

FEW_GROUPS = 16  # column groups
SMALL_M = 16  # below: weights are read for little arithmetic


@dataclass(frozen=True)
class Config:
    """What may be chosen freely for a shape: results are the same bits whatever it is.

    For SMALL_M rows and more `rows` x `columns` (tiles of 16) is the register tile, `depth` k's
    make a panel, and a task takes about `chunk` rows, or fewer where there are few columns. Fewer
    rows are one task for each `few_columns`, one row for each `small_columns`.
    """

    rows: int
    columns: int
    depth: int
    chunk: int
    few_columns: int
    small_columns: int


@dataclass(frozen=True)
class Tile:
    """Sums of one register tile: `rows` times `columns` tiles of 16."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.columns * COLUMNS

    def lane(self, r: Expr, j: Expr) -> Expr:
        """Where the sums of row r and column tile j begin: column tile after column tile."""
        return (j * self.rows + r) * COLUMNS


@dataclass(frozen=True)
class Place:
    """Where products are added: the register tile's sums, its number within the task, its first row
    and column tile.
    """

    tile: Tile
    sums: Registers
    number: Expr
    row: Expr
    column: Expr

    def vectors(self, isa: Isa) -> int:
        return self.tile.columns * COLUMNS // isa.lanes

    def slot(self, isa: Isa, r: int, v: int) -> int:
        """The number of sum vector v of row r."""
        return r * self.vectors(isa) + v


@dataclass(frozen=True)
class Output:
    """y (M, n), and what the sums go through on the way there."""

    y: Any
    n: int
    row_scales: Any = None  # tensor scales of the activations, f32 (M, 1)
    weight_scale: Any = None  # f32 (1,)
    bias: Any = None
    activation: str = "none"


@dataclass(frozen=True)
class Task:
    """What a task computes: `count` row tiles from `row(0)` on, `tile.columns` tiles of 16.

    `first` is the number of its first row tile; `rows` of a row tile there are, all unless M has
    fewer. `held` float32 (row tiles, tile.size) are its sums: those of a row tile as `Tile.lane`
    says.
    """

    tile: Tile
    column: Expr
    count: Expr
    row: Callable[[Expr], Expr]
    rows: Expr
    first: Expr
    held: Any


Add = Callable[[Place], None]  # emits the products of one panel, added to the sums of a place
EachTile = Callable[[Add], None]  # emits the loop over the task's row tiles around an `Add`
Body = Callable[[Task, EachTile], None]  # emits all of K for a task


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Way:
    """How `least` rows and more are computed: the register tile, which may have more than those,
    the rows of a task, its inside;
    `before`: what is done once before all tasks; `tasks`: how many there are to be where rows
    allow, None for short chunks where there are few columns; whether sums are zero for `body`.
    """

    least: int
    tile: Tile
    chunk: int
    body: Body
    before: Callable[[], None] = _nothing
    tasks: Callable[[], Expr] | None = None
    starts_at_zero: bool = True


@dataclass(frozen=True)
class Choices:
    """Of an instruction set: the rows and columns of register tiles, and the default config."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    default: Config


def space(choices: Choices, m: int, k: int) -> dict[str, tuple[int, ...]]:
    """The fields of a config that matter for M rows, each with what is worth trying, the default's
    values among them.
    """
    default = choices.default
    if m == 1:
        return {"small_columns": (1, 2, 3, 4, 6, 8)}
    if m < SMALL_M:
        return {"few_columns": (1, 2, 3, 4, 6)}
    depths = (256, 512, 1024, 2048, 4096)
    tried = {
        "rows": choices.rows,
        "columns": choices.columns,
        "depth": tuple(depth for depth in depths if depth < k) or (min(depths),),
        "chunk": (32, 64, 96, 128, 192, 256, 384),
    }
    return {name: tuple(sorted({*c, getattr(default, name)})) for name, c in tried.items()}


def emit_gemm(isa: Isa, m: Expr, output: Output, ways: Sequence[Way]) -> None:
    """The loop nest of every way, the one for the most rows first; the last takes what is left."""
    first, *others = ways
    if not others:
        _emit_grid(isa, first, m, output)
        return
    with T.If(m >= first.least):
        with T.Then():
            _emit_grid(isa, first, m, output)
        with T.Else():
            emit_gemm(isa, m, output, others)


def one_by_one(task: Task, add: Add) -> None:
    """Makes the sums of a task, 16 columns of a row at a time; what its register tiles cannot."""
    tile = task.tile
    with T.serial(task.count) as i, T.serial(task.rows) as r, T.serial(tile.columns) as j:
        lanes = at(tile.lane(r, j), COLUMNS)
        sums = Registers(1, "float32", COLUMNS)
        sums[0] = splat(0.0, "float32", COLUMNS)
        row, column = bound(task.row(i) + r), bound(task.column + j)
        add(Place(Tile(1, 1), sums, i, row, column))
        T.buffer_store(task.held, sums[0], [i, lanes])


def each_part(total: int, size: int, emit: Callable[[Expr, int], None]) -> None:
    """`emit(first, count)` for `size` of a total at a time, and for the rest."""
    if total // size:
        with T.serial(total // size) as number:
            IRBuilder.name("part", number)
            emit(let(number * size), size)
    if total % size:
        emit(tirx.const(total // size * size, "int64"), total % size)


def row_tiles_of_chunk(row_tiles: Expr, most: int, chunks: Expr) -> Expr:
    """At most `most`, and few enough for so many chunks where there are as many row tiles; 1 or
    more. All chunks are about as large, and none that starts before the end is empty.
    """
    wanted = tirx.max(tirx.ceildiv(row_tiles, most), tirx.min(row_tiles, chunks))
    return tirx.max(tirx.ceildiv(row_tiles, tirx.max(wanted, 1)), 1)


def _emit_grid(isa: Isa, way: Way, m: Expr, output: Output) -> None:
    width, chunk = tiles(output.n), way.chunk
    tile = Tile(way.tile.rows, min(way.tile.columns, width))
    groups = -(-width // tile.columns)
    row_tiles = tirx.ceildiv(m, tile.rows)
    if groups < FEW_GROUPS and way.tasks is None:  # rows have to busy the threads
        chunk = min(chunk, 64)
    most = max(1, chunk // tile.rows)
    wanted = tirx.const(0, "int64") if way.tasks is None else tirx.ceildiv(way.tasks(), groups)
    height = let(row_tiles_of_chunk(row_tiles, most, wanted))
    chunks = let(tirx.ceildiv(row_tiles, height))
    way.before()
    with T.parallel(chunks * groups) as number:
        IRBuilder.name("task", number)
        first = bound(number // groups * height)
        column = bound(tirx.min(number % groups * tile.columns, width - tile.columns))
        held = T.alloc_buffer((most, tile.size), "float32")

        def row(i: Expr) -> Expr:
            start = tirx.min((first + i) * tile.rows, m - tile.rows)
            return bound(start if way.least >= tile.rows else tirx.max(start, 0))

        rows = tirx.const(tile.rows, "int64")
        if way.least < tile.rows:
            rows = bound(tirx.min(rows, m))
        count = bound(tirx.min(height, row_tiles - first))
        task = Task(tile, column, count, row, rows, first, held)
        lanes = [
            at(tile.lane(r, j) + v, isa.lanes)
            for r in range(tile.rows)
            for j in range(tile.columns)
            for v in range(0, COLUMNS, isa.lanes)
        ]
        if way.starts_at_zero:
            with T.serial(task.count) as i:
                for lane in lanes:
                    T.buffer_store(held, splat(0.0, "float32", isa.lanes), [i, lane])

        def each_tile(add: Add) -> None:
            with T.serial(task.count) as i:
                sums = Registers(len(lanes), "float32", isa.lanes)
                for number, lane in enumerate(lanes):
                    sums[number] = held[i, lane]
                add(Place(tile, sums, i, row(i), column))
                for number, lane in enumerate(lanes):
                    T.buffer_store(held, sums[number], [i, lane])

        way.body(task, each_tile)
        with T.serial(task.count) as i:
            _emit_output(isa, task, held, i, output)


def _emit_output(isa: Isa, task: Task, held: Any, i: Expr, output: Output) -> None:
    """From the sums of row tile i to y, row by row: a loop, for the activation's code is long."""
    tile, first = task.tile, task.row(i)
    ragged = output.n % COLUMNS
    with T.serial(task.rows) as r:
        row = bound(first + r)
        scale = _tensor_scale(output, row)
        for j in range(tile.columns):
            values = [
                let(held[i, at(tile.lane(r, j) + v, isa.lanes)])
                for v in range(0, COLUMNS, isa.lanes)
            ]
            if ragged and j == tile.columns - 1:
                with T.If(task.column + j == tiles(output.n) - 1):
                    with T.Then():
                        _emit_columns(task.column + j, output, row, values, scale, ragged)
                    with T.Else():
                        _emit_columns(task.column + j, output, row, values, scale, COLUMNS)
            else:
                _emit_columns(task.column + j, output, row, values, scale, COLUMNS)


def _emit_columns(
    column: Expr, output: Output, row: Expr, values: list[Expr], scale: Expr, width: int
) -> None:
    """Finish and store the first `width` columns of a tile of a row."""
    n0 = column * COLUMNS
    for v, value in enumerate(values):
        lanes = COLUMNS // len(values)
        valid = min(lanes, width - v * lanes)
        if valid <= 0:
            return
        start = n0 + v * lanes
        bias = None if output.bias is None else load(output.bias, (), start, lanes, valid)
        y = ACTIVATIONS[output.activation](bound(_affine(value, scale, bias)))
        store(output.y, (row,), start, y, valid)


def _affine(value: Expr, scale: Expr | None, bias: Expr | None) -> Expr:
    """value * scale + bias with one rounding when there are both."""
    if scale is None:
        return value if bias is None else value + bias
    spread = tirx.Broadcast(scale, value.ty.dtype.lanes)
    return value * spread if bias is None else fma(value, spread, bias)


def _tensor_scale(output: Output, row: Expr) -> Expr | None:
    """The product of weight's and row's tensor scale, None if there is neither."""
    of_row = None if output.row_scales is None else output.row_scales[row, 0]
    of_weight = None if output.weight_scale is None else output.weight_scale[0]
    if of_row is None or of_weight is None:
        one = of_weight if of_row is None else of_row
        return None if one is None else bound(one)
    return bound(of_row * of_weight)
