"""Weight operands of a float GEMM: float32 as they were, or block-scaled and decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import decode, plain
from lbcompiler.targets.cpu.gemm import Task
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    at,
    bound,
    let,
    maximum,
    reduce_max_unsigned,
    splat,
)
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS
from lbcompiler.targets.cpu.packed_weights import load_planes, load_scales

Use = Callable[[Expr, list[Expr]], None]  # (k, a vector for each of columns)
UsePair = Callable[[Expr, list[Expr], list[Expr]], None]  # (k, vectors of k, of k + 1)


@dataclass(frozen=True)
class Dense:
    """Float weights (T, k, 16)."""

    isa: Isa
    w: Any

    def reader(self, column: Expr) -> Callable[[Expr, int], Expr]:
        """(k, v) -> vector v of the columns from tile `column` on."""

        def read(position: Expr, v: int) -> Expr:
            tile, lane = divmod(v * self.isa.lanes, COLUMNS)
            return self.w[column + tile, position, at(lane, self.isa.lanes)]

        return read


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

    def unusual(self, task: Task, k: int) -> Expr:
        """Not 0 if a scale of the task's columns is not plain."""
        if self.fmt.scale != "e8m0":
            return tirx.const(0, "int32")
        lanes = self.isa.lanes
        largest = Registers(1, "int32", lanes)
        largest[0] = splat(0, "int32", lanes)
        with T.serial(self.fmt.blocks(k)) as block:
            for v in range(task.tile.columns * COLUMNS // lanes):
                stored = load_scales(self.scales, task.column, block, v, self.isa)
                largest[0] = maximum(largest[0], plain.distance(stored))
        most = reduce_max_unsigned(largest[0])
        return tirx.Select(most > plain.BFLOAT16, tirx.const(1, "int32"), tirx.const(0, "int32"))
