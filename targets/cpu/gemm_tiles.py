"""The inside of an integer GEMM for many rows with AMX: one tile operation a block, one FMA a row.

    for block of two k's .. K / block, ascending, software-pipelined
        C = activations (times their scales) . weights           tdpbf16ps, exact
        C to memory                                              two of them in turn, in L1
        sum = fma(C, weight scale, sum)                          16 columns of a row at a time

Integers times a scale of the activations are exact in bfloat16, and so is the sum of a block in
float32: the tile holds its exact dot product times one of the two scales, which the FMA multiplies
with the other. That is the same single rounding as everywhere else. (`tdpbssd` multiplies int8 no
faster, blocks being too short for it: 16 cycles whatever the depth of a tile. And its int32 results
would take a conversion and a multiplication more, on the two ports that all vector units share.)

A tile passes through four stages, of which each takes longer than the processor looks ahead: so a
step multiplies block i, stores i - 1 and adds i - 2.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx, tile_weights
from lbcompiler.targets.cpu.gemm import Place, Task, Tile
from lbcompiler.targets.cpu.integer_products import Activations, Products
from lbcompiler.targets.cpu.integer_weights import DirectWeights
from lbcompiler.targets.cpu.intrinsics import Expr, Registers, at, bound, fma, let
from lbcompiler.targets.cpu.layout import COLUMNS
from lbcompiler.targets.cpu.plain import flagged
from lbcompiler.targets.cpu.tile_activations import TileRows
from lbcompiler.targets.cpu.tile_weights import TilePanel

MOST_ROWS = 2 * amx.ROWS  # whose sums fill the vector registers
KEPT = 28  # rows whose sums stay in registers, with room for a factor and the compiler
_A, _B = 4, 6  # the first tiles of the operands, behind two blocks' results


def height_of(rows: int) -> int:
    """The rows of a register tile that come nearest to what a config asks for: 16 or 32.

    Raises ValueError below 1.
    """
    if rows < 1:
        raise ValueError(f"a register tile has {rows} rows; it must have 1 or more")
    return MOST_ROWS if rows > amx.ROWS else amx.ROWS


@dataclass(frozen=True)
class _Operands:
    """Tiles of the activations' row tile `tile` and of the panel's column tile `j`."""

    rows: TileRows
    panel: TilePanel
    tile: Expr
    j: Expr
    first: Expr

    def load(self, part: int, block: Expr) -> None:
        """Rows 16 part and on, and with the first of them the weights, for a block of the panel."""
        width = 2 * self.rows.activations.block
        amx.load(_A + part, self.rows.first(self.tile, part, self.first + block), width)
        if part == 0:
            amx.load(_B, self.panel.first(self.j, block), amx.ROW_BYTES)


class _Sums:
    """Those of a register tile, in registers but for a few rows."""

    def __init__(self, task: Task, height: int, i: Expr, j: Expr) -> None:
        self._task, self._i, self._j = task, i, j
        self._kept = min(height, KEPT)
        self._held = Registers(self._kept, "float32", COLUMNS)
        for r in range(self._kept):
            self._held[r] = task.held[*self._place(r)]

    def factor(self, panel: TilePanel, block: Expr) -> Expr:
        """What results of a block of the panel are multiplied with."""
        return let(panel.factor(self._j, block))

    def add(self, r: int, value: Expr, factor: Expr) -> None:
        """sum = fma(value, factor, sum)."""
        if r < self._kept:
            self._held[r] = fma(value, factor, self._held[r])
            return
        place = self._place(r)
        T.buffer_store(self._task.held, fma(value, factor, self._task.held[*place]), place)

    def keep(self) -> None:
        """Back to memory."""
        for r in range(self._kept):
            T.buffer_store(self._task.held, self._held[r], self._place(r))

    def _place(self, r: int) -> list[Expr]:
        return [self._i, at(self._task.tile.lane(r, self._j), COLUMNS)]


@dataclass(frozen=True)
class TileGemm:
    """`before` and `body` of a `gemm.Way` of 16 or 32 rows; depth in blocks, even."""

    activations: Activations
    weights: DirectWeights
    blocks: int
    depth: int
    height: int

    def emit(self, rows: TileRows, task: Task) -> None:
        """All of K for a task."""
        unusual = tirx.const(0, "int32")
        if self.activations.flags is not None:
            unusual = unusual | flagged(task, self.activations.flags)
        if self.weights.fmt.scale == "e8m0":
            unusual = unusual | tile_weights.unusual(self.weights, task, self.blocks)
        if isinstance(unusual, tirx.IntImm):
            self._emit_tiles(rows, task)
            return
        with T.If(unusual == 0):
            with T.Then():
                self._emit_tiles(rows, task)
            with T.Else():
                self._emit_apart(task)

    def _emit_tiles(self, rows: TileRows, task: Task) -> None:
        even = self.blocks + self.blocks % 2
        width = 2 * self.activations.block
        shapes = [(amx.ROWS, amx.ROW_BYTES)] * _A
        shapes += [(amx.ROWS, width)] * (_B - _A) + [(width // 4, amx.ROW_BYTES)]
        amx.configure(shapes)
        panel = TilePanel(self.weights, task, self.depth)
        results = T.alloc_buffer((2, self.height * COLUMNS), "float32")
        with T.serial(-(-even // self.depth)) as number:
            IRBuilder.name("panel", number)
            first = bound(number * self.depth)
            count = bound(tirx.min(self.depth, even - first)) if even % self.depth else self.depth
            if self.blocks % 2:
                panel.decode(first, bound(tirx.min(count, self.blocks - first)))
                with T.If(first + count > self.blocks), T.Then():
                    panel.clear(self.blocks - first)
            else:
                panel.decode(first, count)
            self._emit_panel(rows, panel, task, results, first, count)
        amx.release()

    def _emit_panel(
        self, rows: TileRows, panel: TilePanel, task: Task, results: Any, first: Expr, count: Expr
    ) -> None:
        """One panel: register tile after register tile, the pipeline filled all the time."""
        columns = task.tile.columns
        total = bound(task.count * columns)

        def place(number: Expr) -> _Operands:
            i, j = bound(number // columns), bound(number % columns)
            return _Operands(rows, panel, bound(task.first + i), j, first)

        def step(
            operands: _Operands,
            block: Expr,
            parity: int,
            sums: _Sums | None = None,
            added: Expr = None,
        ) -> None:
            """Multiplies `block`, stores the one before it, and adds the one before that to sums,
            block `added` of the panel.
            """
            parts = self.height // amx.ROWS
            factor = None if sums is None else sums.factor(panel, added)
            for part in range(parts):
                lanes = part * amx.ROWS * COLUMNS
                operands.load(part, block)
                if parity == 1 or sums is not None:
                    amx.store((1 - parity) * parts + part, results[1 - parity, lanes])
                amx.zero(parity * parts + part)
                amx.dot_bf16(parity * parts + part, _A + part, _B)
                if sums is None:
                    continue
                for r in range(part * amx.ROWS, (part + 1) * amx.ROWS):
                    sums.add(r, results[parity, at(r * COLUMNS, COLUMNS)], factor)

        zero, one = (tirx.const(number, "int64") for number in (0, 1))
        start = place(zero)
        step(start, zero, 0)
        step(start, one, 1)
        with T.serial(total) as number:
            IRBuilder.name("tile", number)
            here, after = place(number), place(bound(tirx.min(number + 1, total - 1)))
            i = bound(number // columns)
            panel.ask_for_next(first, here.j, i)
            sums = _Sums(task, self.height, i, here.j)
            with T.serial(count // 2 - 1) as pair:
                block = bound(pair * 2)
                step(here, block + 2, 0, sums, block)
                step(here, block + 3, 1, sums, block + 1)
            step(after, zero, 0, sums, count - 2)
            step(after, one, 1, sums, count - 1)
            sums.keep()

    def _emit_apart(self, task: Task) -> None:
        """For scales that are not plain: value after value of a row, by dot products."""
        products = Products(self.activations, self.weights, is_plain=False)
        with (
            T.serial(task.count) as i,
            T.serial(self.height) as r,
            T.serial(task.tile.columns) as j,
        ):
            lanes = at(task.tile.lane(r, j), COLUMNS)
            sums = Registers(1, "float32", COLUMNS)
            sums[0] = task.held[i, lanes]
            row = bound(task.row(i) + r)
            products.add(Place(Tile(1, 1), sums, i, row, bound(task.column + j)), 0, self.blocks)
            T.buffer_store(task.held, sums[0], [i, lanes])
