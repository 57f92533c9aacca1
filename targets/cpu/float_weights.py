"""Weight operands of a float GEMM: float32 as they were, or block-scaled and decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import decode, plain
from lbcompiler.targets.cpu.gemm import Task
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bound,
    let,
    splat,
)
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS
from lbcompiler.targets.cpu.packed_weights import load_planes, load_scales

STEP = 4  # k's that the innermost loop takes at a time

Read = Callable[[Expr, int], Expr]  # (k, v) -> vector v of the columns
Use = Callable[[Expr, list[Expr]], None]  # (k, a vector for each of columns)
UsePair = Callable[[Expr, list[Expr], list[Expr]], None]  # (k, vectors of k, of k + 1)


def each_vector(isa: Isa, columns: int, first: Expr, count: int, read: Read, use: Use) -> None:
    """`use(k, vectors)` for `count` k's from `first` on of tiles of columns that are float32."""

    def step(start: Expr, count: int) -> None:
        with T.unroll(count) as i:
            position = start + i
            use(position, [let(read(position, v)) for v in range(columns * COLUMNS // isa.lanes)])

    if count // STEP:
        with T.serial(count // STEP) as i:
            step(let(first + i * STEP), STEP)
    if count % STEP:
        step(first + count // STEP * STEP, count % STEP)


@dataclass(frozen=True)
class Panel:
    """Columns of a task for some k's: `fill` makes them from `first` on, `each` reads them."""

    isa: Isa
    columns: int
    fill: Callable[[Expr, int], None]
    read: Callable[[Expr, Expr, int], Expr]  # (first, k, v)

    def each(self, first: Expr, count: int, use: Use) -> None:
        each_vector(self.isa, self.columns, first, count, partial(self.read, first), use)


@dataclass(frozen=True)
class Dense:
    """Float weights (T, k, 16)."""

    isa: Isa
    w: Any

    def whole(self, depth: int) -> int:
        """Any depth will do."""
        return depth

    def emit(self, columns: int, column: Expr, first: Expr, count: int, use: Use) -> None:
        """`use(k, vectors)` for `count` k's of some tiles of columns."""
        each_vector(self.isa, columns, first, count, partial(self._read, column), use)

    def panel(self, task: Task, depth: int) -> Panel:
        """The weights where they lie."""

        def read(_first: Expr, position: Expr, v: int) -> Expr:
            return self._read(task.column, position, v)

        return Panel(self.isa, task.tile.columns, lambda first, count: None, read)

    def _read(self, column: Expr, position: Expr, v: int) -> Expr:
        tile, lane = divmod(v * self.isa.lanes, COLUMNS)
        return self.w[column + tile, position, at(lane, self.isa.lanes)]


@dataclass(frozen=True)
class Decode:
    """Block-scaled weights, as float32 vectors of code * scale."""

    isa: Isa
    fmt: BlockFormat
    planes: list[Any]
    scales: Any

    def whole(self, depth: int) -> int:
        """`depth` in whole blocks, at least one."""
        return max(self.fmt.block, depth // self.fmt.block * self.fmt.block)

    def emit(self, columns: int, column: Expr, first: Expr, count: int, use: Use) -> None:
        """`use(k, vectors)` for `count` k's of some tiles of columns; `first` begins a block."""
        self._each_block(
            first,
            count,
            lambda block, within: self._block(columns, column, block, within, use),
        )

    def panel(self, task: Task, depth: int) -> Panel:
        """`depth` k's of the task's columns, decoded into float32 (depth, columns)."""
        held = T.alloc_buffer((depth, task.tile.columns * COLUMNS), "float32")

        def vector(first: Expr, position: Expr, v: int) -> list[Expr]:
            return [position - first, at(v * self.isa.lanes, self.isa.lanes)]

        def fill(first: Expr, count: int) -> None:
            def keep(position: Expr, vectors: list[Expr]) -> None:
                for v, value in enumerate(vectors):
                    T.buffer_store(held, value, vector(first, position, v))

            self.emit(task.tile.columns, task.column, first, count, keep)

        def read(first: Expr, position: Expr, v: int) -> Expr:
            row, lanes = vector(first, position, v)
            return held[row, lanes]

        return Panel(self.isa, task.tile.columns, fill, read)

    def emit_pairs(self, columns: int, column: Expr, first: Expr, count: int, use: UsePair) -> None:
        """The same for two k's at a time; behind an odd number of them comes padding, zeros."""
        held: list[list[Expr]] = []

        def gather(position: Expr, vectors: list[Expr]) -> None:
            held.append(vectors)
            if len(held) == 2:
                use(position - 1, held[0], held[1])
                held.clear()

        self._each_block(
            first,
            count,
            lambda block, within: self._block(
                columns, column, block, within + within % 2, gather, together=2
            ),
        )

    def _each_block(self, first: Expr, count: int, emit: Callable[[Expr, int], None]) -> None:
        start, whole = let(first // self.fmt.block), count // self.fmt.block
        if whole:
            with T.serial(whole) as i:
                IRBuilder.name("block", i)
                emit(let(start + i), self.fmt.block)
        if count % self.fmt.block:
            emit(start + whole, count % self.fmt.block)

    def _block(
        self, columns: int, column: Expr, block: Expr, count: int, use: Use, together: int = 1
    ) -> None:
        """k's of one block, at least `together` of them in one turn of the loop."""
        inverse = splat(1.0 / decode.divisor(self.fmt.element), "float32", self.isa.lanes)
        factors = []
        for v in range(columns * COLUMNS // self.isa.lanes):
            stored = load_scales(self.scales, column, block, v, self.isa)
            factors.append(bound(decode.scale_value(self.isa, self.fmt.scale, stored) * inverse))
        groups, start = decode.group_count(self.fmt.element), block * self.fmt.block
        step = max(groups, together)
        if count // step:
            with T.serial(count // step) as i:
                self._loads(column, let(start + i * step), step, factors, use)
        if count % step:
            self._loads(column, start + count // step * step, count % step, factors, use)

    def _loads(self, column: Expr, start: Expr, count: int, factors: list[Expr], use: Use) -> None:
        """The first `count` k's of as many loads of each plane as hold them."""
        groups = decode.group_count(self.fmt.element)
        for done in range(0, count, groups):
            index = (start + done) // groups
            decoded = [
                self._decoded(load_planes(self.planes, column, index, v, self.isa, 1), factor)
                for v, factor in enumerate(factors)
            ]
            for i in range(min(groups, count - done)):
                use(start + done + i, [bound(vectors[i]) for vectors in decoded])

    def _decoded(self, planes: list[list[Expr]], factor: Expr) -> list[Expr]:
        codes = decode.stored_codes(self.fmt.element, planes)
        return [decode.real_value(self.isa, self.fmt.element, code) * factor for code in codes]

    def unusual(self, task: Task) -> Expr:
        """Not 0 if a scale of the task's columns is not plain."""
        if self.fmt.scale != "e8m0":
            return tirx.const(0, "int32")
        return plain.unusual(self.isa, self.scales, task)
