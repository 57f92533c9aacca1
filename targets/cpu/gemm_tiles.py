"""The inside of a GEMM for many rows with AMX: sums that stay in tiles for a whole panel.

    for panel of `depth` blocks of k's
        for group of column tiles
            weights of both, code * scale, to bfloat16       in L1
            for row tile
                C = sums                                     float32
                for block in panel, ascending
                    C += activations . weights               tdpbf16ps, a block at a time
                sums = C

Numbers of 8 bits times their scale are exact in bfloat16, and products of two in float32. A block
is the whole depth of a tile; `tdpbf16ps` adds the products of its even k's, those of its odd ones,
both sums, and what comes out to C. Where codes are small integers the first three are exact too
(`exact_bits`). What is left is one rounding a block, the one that an FMA with the product of the
scales makes in every other kernel: the same bits. (Two blocks of 16 in one tile would be faster,
and other bits.) Elements with exponents are rounded at every step, in this order, which is not that
of the kernels that go k by k.

A register tile is 2 x 2 tiles, whose 4 loads of operands serve 4 products; 16 rows make 1 x 4.
Asking for operands ahead gains nothing for many rows, and decoding the next panel between the
products or the row tiles of this one is slower: its stores keep the loads of tiles waiting.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx
from lbcompiler.targets.cpu.gemm import FEW_GROUPS, Choices, Config, EachTile, Task, Tile, Way
from lbcompiler.targets.cpu.intrinsics import Expr, bound, let
from lbcompiler.targets.cpu.layout import tiles

MOST_ROWS = 2 * amx.ROWS
COLUMN_GROUPS = (6, 8, 12, 16)  # column tiles of a task
ONE_PANEL = 384  # k's at most that are one panel: their sums never leave the tiles
TASKS = 4  # for each processor, where rows allow: more would decode weights again
CHOICES = Choices(
    (16, 32),
    (4, 6, 8, 10, 12, 16),
    Config(rows=32, columns=8, depth=320, chunk=512, few_columns=2, small_columns=1),
)
SUMS = 4  # tiles of a register tile; those of its operands come behind them


@dataclass(frozen=True)
class Rows:
    """Activations in bfloat16, tile after tile: codes (panels, row tiles, depth, rows / 16, what a
    tile holds).
    """

    codes: Any

    def first(self, panel: Expr, tile: Expr, part: int, block: Expr) -> Any:
        """The first element of a tile: rows 16 part and on of row tile `tile`, block of a panel."""
        return self.codes[panel, tile, block, part, 0]


@dataclass(frozen=True)
class Strip:
    """16 rows of a panel, from row `first` on: those of part `part` of a row tile."""

    panel: Expr
    tile: Expr
    part: Expr
    first: Expr


class Panel(Protocol):
    """Weights in bfloat16 for some k's and a register tile's columns."""

    def decode(self, panel: Expr, count: Expr, j: Expr, columns: int) -> None:
        """Makes `count` blocks of a panel, for `columns` column tiles of the task from j on."""

    def first(self, v: int, block: Expr) -> Any:
        """The first element of the tile of column tile j + v."""


def tile_config(default: Config, n: int, k: int) -> Config:
    """A default for a shape: column groups that overlap little, wide where there are many of them;
    one panel where K is short.
    """
    count = tiles(n)
    wanted = max(default.columns, min(COLUMN_GROUPS[-1], count // FEW_GROUPS))
    widths = sorted(COLUMN_GROUPS, key=lambda c: (-(-count // c) * c, abs(c - wanted)))
    return replace(default, columns=widths[0], depth=ONE_PANEL if k <= ONE_PANEL else default.depth)


def tile_ways(
    config: Config,
    block: int,
    blocks: int,
    depth: int,
    least: int,
    pack: Callable[["TileGemm"], Rows],
    inside: Callable[["TileGemm", Rows, Task], None],
) -> list[Way]:
    """For `least` rows and more; register tiles of 32 rows and, for fewer, of 16. `pack` makes the
    activations of all tasks, `inside` emits a task.
    """

    def way(height: int) -> Way:
        gemm = TileGemm(block, blocks, depth, height)
        packed: list[Rows] = []

        def before() -> None:
            amx.request()
            packed.append(pack(gemm))

        def body(task: Task, _each_tile: EachTile) -> None:
            inside(gemm, packed[0], task)

        tile, rows = Tile(height, config.columns), height if height > amx.ROWS else least
        return Way(rows, tile, config.chunk, body, before, _tasks, starts_at_zero=False)

    return [way(height) for height in range(height_of(config.rows), 0, -amx.ROWS)]


def _tasks() -> Expr:
    return amx.processors() * TASKS


def height_of(rows: int) -> int:
    """The rows of a register tile that come nearest to what a config asks for: 16 or 32.

    Raises ValueError below 1.
    """
    if rows < 1:
        raise ValueError(f"a register tile has {rows} rows; it must have 1 or more")
    return MOST_ROWS if rows > amx.ROWS else amx.ROWS


@dataclass(frozen=True)
class TileGemm:
    """`block` k's are a tile's depth, 16 or 32; K has `blocks` of them, a panel `depth`, and a
    register tile `height` rows.
    """

    block: int
    blocks: int
    depth: int
    height: int

    @property
    def panels(self) -> int:
        """In all of K."""
        return -(-self.blocks // self.depth)

    @property
    def parts(self) -> int:
        """Tiles of a register tile above one another."""
        return self.height // amx.ROWS

    @property
    def span(self) -> int:
        """Tiles of a register tile side by side."""
        return SUMS // self.parts

    def count(self, panel: Expr) -> Expr:
        """Blocks of a panel: the last may have fewer."""
        if self.blocks % self.depth == 0:
            return tirx.const(self.depth, "int64")
        return bound(tirx.min(self.depth, self.blocks - panel * self.depth))

    def pack(self, m: Expr, dtype: str, size: int, emit: Callable[[Any, Strip], None]) -> Rows:
        """m rows in tiles of `size` elements: `emit(codes, strip)` in parallel for each strip."""
        count = tirx.ceildiv(m, self.height)
        codes = T.alloc_buffer((self.panels, count, self.depth, self.parts, size), dtype)
        with T.parallel(self.panels * count * self.parts) as number:
            IRBuilder.name("strip", number)
            part, tile = let(number % self.parts), let(number // self.parts % count)
            panel = let(number // self.parts // count)
            start = tirx.max(tirx.min(tile * self.height, m - self.height), 0)
            emit(codes, Strip(panel, tile, part, let(start + part * amx.ROWS)))
        return Rows(codes)

    def emit(self, rows: Rows, panel: Panel, task: Task) -> None:
        """All of K for a task."""
        width = 2 * self.block
        shapes = [(amx.ROWS, amx.ROW_BYTES)] * SUMS
        shapes += [(amx.ROWS, width)] * self.parts
        shapes += [(width // 4, amx.ROW_BYTES)] * (amx.TILES - len(shapes))
        amx.configure(shapes)
        groups, left = divmod(task.tile.columns, self.span)
        with T.serial(self.panels) as number:
            IRBuilder.name("panel", number)
            if groups:
                with T.serial(groups) as group:
                    j = bound(group * self.span)
                    self._emit_columns(rows, panel, task, number, j, self.span)
            if left:
                j = tirx.const(groups * self.span, "int64")
                self._emit_columns(rows, panel, task, number, j, left)
        amx.release()

    def _emit_columns(
        self, rows: Rows, panel: Panel, task: Task, number: Expr, j: Expr, columns: int
    ) -> None:
        """All row tiles by `columns` column tiles from j on, for panel `number`."""
        count, stride = self.count(number), 2 * self.block
        panel.decode(number, count, j, columns)
        with T.serial(task.count) as i:
            row_tile = bound(task.first + i)
            sums = {
                part * self.span + v: task.held[i, bound(task.tile.lane(part * amx.ROWS, j + v))]
                for part in range(self.parts)
                for v in range(columns)
            }
            with T.If(number == 0):
                with T.Then():
                    for tile in sums:
                        amx.zero(tile)
                with T.Else():
                    for tile, place in sums.items():
                        amx.load(tile, place, amx.ROW_BYTES)
            with T.serial(count) as block:
                IRBuilder.name("block", block)
                for part in range(self.parts):
                    amx.load(SUMS + part, rows.first(number, row_tile, part, block), stride)
                    self._multiply(panel, part, columns, block)
            for tile, place in sums.items():
                amx.store(tile, place)

    def _multiply(self, panel: Panel, part: int, columns: int, block: Expr) -> None:
        """Tiles of weights take turns; those of the first rows are still there for the others."""
        first = SUMS + self.parts
        for v in range(columns):
            weights = first + v % (amx.TILES - first)
            if part == 0:
                amx.load(weights, panel.first(v, block), amx.ROW_BYTES)
            amx.dot_bf16(part * self.span + v, SUMS + part, weights)
