"""Attention of float32 heads, by blocks of keys: no tensor of queries x keys is ever in memory.

    for task in parallel(batch x head x tile of queries)
        queries (depth, tile) = the tile * scale, turned
        for block of keys, up to the last one that a query of the tile sees
            scores (keys, tile)  = k queries [+ mask]
            weights (keys, tile) = exp(scores - largest so far)        attention_softmax.py
            values (depth, tile) = values * factor + v^T weights
        out = values / sum of the weights, turned back

Queries lie across the lanes of vectors. Both products then read k and v as they are stored, one
number broadcast into an FMA; largest score, sum and factor are a lane each, and nothing is ever
reduced across a vector. Only the tile of queries is turned, on its way in and out, which is little
beside the products as soon as there are some dozens of keys.

A value is computed by the same operations in the same order on every instruction set, whatever the
number of threads. A query whose every score is -inf gets NaN, as softmax has it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.across_lanes import larger, transposed
from lbcompiler.targets.cpu.attention_few import FEW, emit_few
from lbcompiler.targets.cpu.attention_operands import Attention, Operands, declare
from lbcompiler.targets.cpu.attention_softmax import INFINITY, Running, exp_of_difference
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Variable,
    at,
    bound,
    fma,
    kernel,
    let,
    load,
    root_block,
    splat,
    store,
    variable,
    vector,
)
from lbcompiler.targets.cpu.isa import GENERIC, Isa


@dataclass(frozen=True)
class Config:
    """A tile has `vectors` of queries; a register tile of either product takes `rows` keys or
    numbers of a head at a time; `block` is how many keys' scores are held.
    """

    vectors: int
    rows: int
    block: int = 128


CONFIGS = {16: Config(2, 8), 8: Config(2, 5)}  # by lanes: sums fill the registers, but a few
FEW_REGISTERS = Config(1, 2)


def attention(what: Attention, isa: Isa, config: Config | None = None) -> Any:
    """PrimFunc(q, k, v[, mask], out): see `attention_operands.declare`."""
    with kernel() as builder:
        operands = declare(what)
        with root_block():
            if what.few:
                emit_few(operands)
            elif what.few is None:
                with T.If(operands.queries <= FEW):
                    with T.Then():
                        emit_few(operands)
                    with T.Else():
                        _emit_tiles(operands, isa, config)
            else:
                _emit_tiles(operands, isa, config)
    return builder.get()


def _emit_tiles(operands: Operands, isa: Isa, chosen: Config | None) -> None:
    config = chosen or (FEW_REGISTERS if isa == GENERIC else CONFIGS[isa.lanes])
    what, width = operands.what, config.vectors * isa.lanes
    tiles = tirx.ceildiv(operands.queries, width)
    with T.parallel(operands.batch * what.q.count * tiles) as task:
        IRBuilder.name("task", task)
        head = bound(task // tiles % what.q.count)
        batch = bound(task // tiles // what.q.count)
        position = task % tiles
        if what.causal:  # first, last, second, ..: threads take ranges of tasks, and equal work
            from_end = tiles - 1 - position // 2
            position = tirx.if_then_else(position % 2 == 0, position // 2, from_end)
        tile = _Tile(operands, isa, config, batch, head, bound(position * width))
        tile.emit()


class _Tile:
    """One task: its buffers, and the steps from queries to output."""

    def __init__(
        self, operands: Operands, isa: Isa, config: Config, batch: Expr, head: Expr, first: Expr
    ) -> None:
        self.operands, self.what, self.config = operands, operands.what, config
        self.lanes, self.vectors = isa.lanes, range(config.vectors)
        self.batch, self.head, self.first = batch, head, first
        self.key_head = let(head // self.what.group) if self.what.group > 1 else head
        width, rows = config.vectors * isa.lanes, config.rows
        self.queries = T.alloc_buffer((self.what.depth, width), "float32")
        self.weights = T.alloc_buffer((config.block + rows, width), "float32")
        self.values = T.alloc_buffer((self.what.value_depth, width), "float32")
        self.masks = None
        if set("QK") <= set(self.what.mask or ""):
            self.masks = T.alloc_buffer((isa.lanes + config.block, width), "float32")

    def emit(self) -> None:
        block, width = self.config.block, self.config.vectors * self.lanes
        self._turn_queries()
        running = [Running.start(self.lanes) for _ in self.vectors]
        with T.serial(self.what.value_depth) as d:
            for n in self.vectors:
                T.buffer_store(self.values, self._splat(0.0), [d, self._lane(n)])
        end = self.operands.keys
        if self.what.causal:
            end = let(tirx.min(end, self.operands.last_key(self.first + width - 1) + 1))
        with T.serial(tirx.ceildiv(end, block)) as i:
            start = let(i * block)
            count = let(tirx.min(block, end - start))
            largest = self._scores(start, count)
            self._softmax(running, largest, count)
            self._sum_values(running, start, count)
        self._write(running)

    def _turn_queries(self) -> None:
        """The tile's queries times the scale, a query a lane; beyond the last, the last again."""
        with T.serial(self.config.vectors) as n:
            first = let(self.first + n * self.lanes)
            rows = [
                self.what.q.row(self.batch, self._query(first, i), self.head)
                for i in range(self.lanes)
            ]

            def turn(start: Expr, count: int) -> None:
                loaded = [
                    bound(load(self.operands.q, row, start, self.lanes, count)) for row in rows
                ]
                for i, numbers in enumerate(transposed(loaded)[:count]):
                    scaled = numbers * self._splat(self.what.scale)
                    T.buffer_store(self.queries, scaled, [start + i, self._lane(n)])

            self._by_squares(self.what.depth, turn)

    def _query(self, first: Expr, i: int) -> Expr:
        return let(tirx.min(first + i, self.operands.queries - 1))

    def _by_squares(self, depth: int, emit: Callable[[Expr, int], None]) -> None:
        """`emit(start, count)` for the numbers of a head, as many at a time as there are lanes."""
        whole, rest = divmod(depth, self.lanes)
        if whole:
            with T.serial(whole) as i:
                emit(let(i * self.lanes), self.lanes)
        if rest:
            emit(whole * self.lanes, rest)

    def _scores(self, start: Expr, count: Expr) -> list[Variable]:
        """The block's scores into `weights`; the largest of each lane."""
        rows = self.config.rows
        if self.masks is not None:
            self._turn_masks(start, count)
        largest = [variable(self._splat(-INFINITY)) for _ in self.vectors]
        with T.serial(tirx.ceildiv(count, rows)) as i:
            first = let(i * rows)
            # beyond the last key: the last once more, whose score changes no maximum
            keys = [let(start + tirx.min(first + j, count - 1)) for j in range(rows)]
            sums = self._product(
                rows,
                self.what.depth,
                lambda j, d: self.operands.k[
                    (*self.what.k.row(self.batch, keys[j], self.key_head), d)
                ],
                self.queries,
                lambda j, n: self._splat(0.0),
            )
            for n in self.vectors:
                for j, key in enumerate(keys):
                    score = bound(self._masked(sums[j][n], n, key, start))
                    T.buffer_store(self.weights, score, [first + j, self._lane(n)])
                    largest[n].set(larger(largest[n].get(), score))
        return largest

    def _masked(self, score: Expr, n: int, key: Expr, start: Expr) -> Expr:
        """The score of a key with what the mask adds, -inf where the key is in the future."""
        what, operands = self.what, self.operands
        if self.masks is not None:
            score = score + self.masks[key - start + self.lanes, self._lane(n)]
        elif what.mask is not None:
            score = score + self._narrow_mask(n, key if "K" in what.mask else 0)
        if not what.causal:
            return score
        seen = operands.last_key(self.first + n * self.lanes)  # by the first lane
        beyond = tirx.Cast("int32", key - seen)
        lane = tirx.Ramp(tirx.const(0, "int32"), tirx.const(1, "int32"), self.lanes)
        is_future = lane < splat(beyond, "int32", self.lanes)
        return tirx.Select(is_future, self._splat(-INFINITY), score)

    def _narrow_mask(self, n: int, key: Expr) -> Expr:
        """A mask that has no axis of queries, or none of keys."""
        assert self.what.mask is not None
        first = self.first + n * self.lanes

        def number(i: int) -> Expr:
            row = self.operands.mask_row(self.batch, self.head, self._query(first, i))
            return self.operands.mask[(*row, key)]

        if "Q" not in self.what.mask:
            return splat(number(0), "float32", self.lanes)
        return vector([number(i) for i in range(self.lanes)])

    def _turn_masks(self, start: Expr, count: Expr) -> None:
        """The block's mask into `masks`, behind as many rows as there are lanes: the last square
        overlaps the one before it, so that it ends where the keys do.
        """
        lanes, keys = self.lanes, self.operands.keys
        with T.serial(self.config.vectors) as n:
            first = let(self.first + n * lanes)
            rows = [
                self.operands.mask_row(self.batch, self.head, self._query(first, i))
                for i in range(lanes)
            ]
            with T.If(keys >= lanes):
                with T.Then(), T.serial(tirx.ceildiv(count, lanes)) as i:
                    key = let(tirx.min(start + i * lanes, keys - lanes))
                    loaded = [
                        bound(load(self.operands.mask, row, key, lanes, lanes)) for row in rows
                    ]
                    for j, numbers in enumerate(transposed(loaded)):
                        T.buffer_store(
                            self.masks, numbers, [key - start + lanes + j, self._lane(n)]
                        )
                with T.Else(), T.serial(count) as i:
                    numbers = vector([self.operands.mask[(*row, i)] for row in rows])
                    T.buffer_store(self.masks, numbers, [i + lanes, self._lane(n)])

    def _softmax(self, running: list[Running], largest: list[Variable], count: Expr) -> None:
        """The block's scores -> weights."""
        offsets = [running[n].raise_to(largest[n].get()) for n in self.vectors]
        with T.serial(count) as key:
            for n in self.vectors:
                score = bound(self.weights[key, self._lane(n)] - offsets[n])
                weight = bound(exp_of_difference(score))
                T.buffer_store(self.weights, weight, [key, self._lane(n)])
                running[n].add(weight)

    def _sum_values(self, running: list[Running], start: Expr, count: Expr) -> None:
        """values = values * factor + v^T weights."""
        factors = [bound(state.factor.get()) for state in running]

        def sum_rows(first: Expr, rows: int) -> None:
            sums = self._product(
                rows,
                count,
                lambda i, key: self.operands.v[
                    (*self.what.v.row(self.batch, start + key, self.key_head), first + i)
                ],
                self.weights,
                lambda i, n: self.values[first + i, self._lane(n)] * factors[n],
            )
            for i in range(rows):
                for n in self.vectors:
                    T.buffer_store(self.values, sums[i][n], [first + i, self._lane(n)])

        whole, rest = divmod(self.what.value_depth, self.config.rows)
        if whole:
            with T.serial(whole) as i:
                sum_rows(let(i * self.config.rows), self.config.rows)
        if rest:
            sum_rows(whole * self.config.rows, rest)

    def _product(
        self,
        rows: int,
        steps: Expr,
        left: Callable[[int, Expr], Expr],
        right: Any,
        start: Callable[[int, int], Expr],
    ) -> list[list[Expr]]:
        """A register tile: start(i, n) + the sum over steps of left(i, step) * right[step], for
        each row i and vector n of queries.
        """
        sums = [[variable(start(i, n)) for n in self.vectors] for i in range(rows)]
        with T.serial(steps) as step:
            vectors = [bound(right[step, self._lane(n)]) for n in self.vectors]
            for i in range(rows):
                number = splat(left(i, step), "float32", self.lanes)
                for total, vector in zip(sums[i], vectors, strict=True):
                    total.set(fma(number, vector, total.get()))
        return [[total.get() for total in row] for row in sums]

    def _write(self, running: list[Running]) -> None:
        """values / sum of the weights to the rows of `out` that there are."""
        operands = self.operands
        inverses = T.alloc_buffer((self.config.vectors * self.lanes,), "float32")
        for n in self.vectors:
            inverse = self._splat(1.0) / running[n].total.get()
            T.buffer_store(inverses, inverse, [self._lane(n)])
        with T.serial(self.config.vectors) as n:
            first = let(self.first + n * self.lanes)
            inverse = bound(inverses[self._lane(n)])

            def write(start: Expr, count: int) -> None:
                square = [self.values[start + i, self._lane(n)] * inverse for i in range(count)]
                square += [self._splat(0.0)] * (self.lanes - count)
                for i, numbers in enumerate(transposed([bound(row) for row in square])):
                    with T.If(first + i < operands.queries), T.Then():
                        store(
                            operands.out, (self.batch, first + i, self.head), start, numbers, count
                        )

            self._by_squares(self.what.value_depth, write)

    def _lane(self, n: Expr) -> Any:
        return at(n * self.lanes, self.lanes)

    def _splat(self, value: float) -> Expr:
        return splat(value, "float32", self.lanes)
