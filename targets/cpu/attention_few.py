"""Attention of a few queries to many keys, as in decoding: k and v are read in long runs.

    for task in parallel(batch x head of k x split of the keys)
        for query
            for head of those that share the head of k
                scores = k q * scale [+ mask]                      16 keys at a time
                weights = exp(scores - largest of the split)
            values = weights v                                     sums of several heads at once
    out = values of all splits * exp(largest of the split - largest), / sum of the weights

Here the numbers of a head lie across the lanes. A score is then a sum across a vector, and a tree
of shuffles makes those of 16 keys together. How keys are split depends on their number alone, and
vectors have 16 lanes on every instruction set: a value depends neither on the threads nor on the
machine.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.across_lanes import larger, largest_of, sum_of, sums_of
from lbcompiler.targets.cpu.attention_operands import Operands
from lbcompiler.targets.cpu.attention_softmax import INFINITY, exp_of_difference, finite_or_zero
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bound,
    fma,
    let,
    load,
    splat,
    store,
    variable,
)
from lbcompiler.targets.cpu.layout import padded

FEW = 16  # queries for which this is the better kernel
LANES = 16
SPLIT = 128  # keys of a split at most; their number is even, that of two threads' tasks equal
HEADS = 4  # that the sum of values takes together
CHAINS = 8  # independent sums at least: latency x throughput of an FMA
SUMS = 16  # vectors at most


@dataclass(frozen=True)
class _Parts:
    """What the splits leave: for each (batch, head, query) and split."""

    values: Any
    largest: Any
    total: Any


def emit_few(operands: Operands) -> None:
    """The tasks, and behind them what puts their parts together."""
    what, keys = operands.what, operands.keys
    most = 2 * _parts_of(keys, 2 * SPLIT)
    size = bound(_parts_of(_parts_of(keys, bound(most)), LANES) * LANES)
    splits = bound(_parts_of(keys, size))
    rows = operands.batch * what.q.count * operands.queries
    parts = _Parts(
        T.alloc_buffer((rows, most, padded(what.value_depth, LANES)), "float32"),
        T.alloc_buffer((rows, most), "float32"),
        T.alloc_buffer((rows, most), "float32"),
    )
    with T.parallel(operands.batch * what.k.count * splits) as task:
        IRBuilder.name("task", task)
        split, pair = bound(tirx.truncmod(task, splits)), bound(tirx.truncdiv(task, splits))
        batch = bound(tirx.truncdiv(pair, what.k.count))
        key_head = bound(tirx.truncmod(pair, what.k.count))
        _Split(operands, parts, batch, key_head, split, bound(split * size)).emit(size)
    _put_together(operands, parts, splits, rows)


def _parts_of(whole: Expr, part: Expr) -> Expr:
    """How many parts make the whole, the last one short; neither is negative.

    (`floordiv` would be written out for negative numbers too, and a `let` of it wherever it is
    used, again and again: minutes of compilation.)
    """
    return tirx.truncdiv(whole + (part - 1), part)


class _Split:
    """One task: some keys of one head, and all queries to them."""

    def __init__(
        self,
        operands: Operands,
        parts: _Parts,
        batch: Expr,
        key_head: Expr,
        split: Expr,
        start: Expr,
    ) -> None:
        self.operands, self.what, self.parts = operands, operands.what, parts
        self.batch, self.key_head, self.split, self.start = batch, key_head, split, start
        self.query = T.alloc_buffer((padded(self.what.depth, LANES),), "float32")
        self.weights = T.alloc_buffer((self.what.group, SPLIT), "float32")

    def emit(self, size: Expr) -> None:
        operands, group = self.operands, self.what.group
        with T.serial(operands.queries) as query:
            last = operands.last_key(query) if self.what.causal else operands.keys - 1
            count = bound(tirx.max(tirx.min(size, last + 1 - self.start), 0))
            with T.serial(group) as member:
                head = let(self.key_head * group + member)
                self._scale_query(head, query)
                self._scores(member, head, query, count)
                self._weigh(member, self._row(head, query), count)
            whole, rest = divmod(group, HEADS)
            if whole:
                with T.serial(whole) as i:
                    self._sum_values(query, let(i * HEADS), HEADS, count)
            if rest:
                self._sum_values(query, whole * HEADS, rest, count)

    def _row(self, head: Expr, query: Expr) -> Expr:
        return (self.batch * self.what.q.count + head) * self.operands.queries + query

    def _scale_query(self, head: Expr, query: Expr) -> None:
        row = self.what.q.row(self.batch, query, head)
        for start, valid in _vectors(self.what.depth):
            numbers = load(self.operands.q, row, start, LANES, valid)
            scaled = numbers * splat(self.what.scale, "float32", LANES)
            T.buffer_store(self.query, scaled, [at(start, LANES)])

    def _scores(self, member: Expr, head: Expr, query: Expr, count: Expr) -> None:
        """Into `weights`, -inf behind the last up to a whole vector."""
        numbers = [bound(self.query[at(start, LANES)]) for start, _ in _vectors(self.what.depth)]
        with T.If(count > 0), T.Then():
            nothing = splat(-INFINITY, "float32", LANES)
            T.buffer_store(
                self.weights, nothing, [member, at(tirx.truncdiv(count - 1, LANES) * LANES, LANES)]
            )
        with T.If(count >= LANES):
            with T.Then(), T.serial(_parts_of(count, LANES)) as i:
                first = let(tirx.min(i * LANES, count - LANES))  # the last 16 overlap those before
                products = [self._product(first + j, numbers) for j in range(LANES)]
                scores = bound(sums_of(products))
                scores = self._masked(scores, head, query, first)
                T.buffer_store(self.weights, scores, [member, at(first, LANES)])
            with T.Else(), T.serial(count) as i:
                score = bound(sum_of(self._product(i, numbers)))
                T.buffer_store(self.weights, self._masked(score, head, query, i), [member, i])

    def _product(self, key: Expr, numbers: list[Expr]) -> Expr:
        """k * q of a key, the vectors of its head added up."""
        row = self.what.k.row(self.batch, self.start + key, self.key_head)
        total: Expr = splat(0.0, "float32", LANES)
        for number, (start, valid) in zip(numbers, _vectors(self.what.depth), strict=True):
            total = fma(load(self.operands.k, row, start, LANES, valid), number, total)
        return bound(total)

    def _masked(self, scores: Expr, head: Expr, query: Expr, key: Expr) -> Expr:
        """One score, or those of neighbours, with what the mask adds."""
        if self.what.mask is None:
            return scores
        lanes = int(scores.ty.dtype.lanes)
        row = self.operands.mask_row(self.batch, head, query)
        if "K" in self.what.mask:
            return scores + self.operands.mask[(*row, at(self.start + key, lanes))]
        return scores + splat(self.operands.mask[(*row, 0)], "float32", lanes)

    def _weigh(self, member: Expr, row: Expr, count: Expr) -> None:
        """Scores -> weights, and their largest and sum into the parts."""
        vectors = bound(_parts_of(count, LANES))
        largest = variable(splat(-INFINITY, "float32", LANES))
        with T.serial(vectors) as i:
            largest.set(larger(largest.get(), self.weights[member, at(i * LANES, LANES)]))
        top = bound(largest_of(largest.get()))
        offset = splat(finite_or_zero(top), "float32", LANES)
        total = variable(splat(0.0, "float32", LANES))
        with T.serial(vectors) as i:
            score = bound(self.weights[member, at(i * LANES, LANES)] - offset)
            weight = bound(exp_of_difference(score))
            T.buffer_store(self.weights, weight, [member, at(i * LANES, LANES)])
            total.set(total.get() + weight)
        T.buffer_store(self.parts.largest, top, [row, self.split])
        T.buffer_store(self.parts.total, sum_of(total.get()), [row, self.split])

    def _sum_values(self, query: Expr, first: Expr, heads: int, count: Expr) -> None:
        """weights v of some heads, as many vectors of v at a time as sums fit the registers."""
        vectors = list(_vectors(self.what.value_depth))
        wide = max(1, SUMS // heads)
        for i in range(0, len(vectors), wide):
            self._sum_vectors(query, first, heads, count, vectors[i : i + wide])

    def _sum_vectors(
        self, query: Expr, first: Expr, heads: int, count: Expr, vectors: list[tuple[int, int]]
    ) -> None:
        steps = -(-CHAINS // (heads * len(vectors)))
        zero = splat(0.0, "float32", LANES)
        sums = [[[variable(zero) for _ in vectors] for _ in range(heads)] for _ in range(steps)]

        def add(key: Expr, held: list[list[Any]]) -> None:
            row = self.what.v.row(self.batch, self.start + key, self.key_head)
            numbers = [bound(load(self.operands.v, row, s, LANES, n)) for s, n in vectors]
            for h in range(heads):
                weight = splat(let(self.weights[first + h, key]), "float32", LANES)
                for number, total in zip(numbers, held[h], strict=True):
                    total.set(fma(number, weight, total.get()))

        with T.serial(tirx.truncdiv(count, steps)) as i:
            for step in range(steps):
                add(let(i * steps + step), sums[step])
        if steps > 1:
            with T.serial(tirx.truncmod(count, steps)) as i:
                add(let(tirx.truncdiv(count, steps) * steps + i), sums[0])
        for h in range(heads):
            row = let(self._row(self.key_head * self.what.group + first + h, query))
            for v, (start, _) in enumerate(vectors):
                total = sums[0][h][v].get()
                for step in range(1, steps):
                    total = total + sums[step][h][v].get()
                T.buffer_store(self.parts.values, total, [row, self.split, at(start, LANES)])


def _put_together(operands: Operands, parts: _Parts, splits: Expr, rows: Expr) -> None:
    """All splits' values as those of one; little work, and a thread would cost more."""
    what = operands.what
    with T.serial(rows) as row:
        largest = variable(splat(-INFINITY, "float32", 1))
        with T.serial(splits) as split:
            largest.set(larger(largest.get(), parts.largest[row, split]))
        offset = finite_or_zero(largest.get())
        total = variable(splat(0.0, "float32", 1))
        vectors = list(_vectors(what.value_depth))
        values = [variable(splat(0.0, "float32", LANES)) for _ in vectors]
        with T.serial(splits) as split:
            factor = bound(exp_of_difference(bound(parts.largest[row, split] - offset)))
            total.set(fma(parts.total[row, split], factor, total.get()))
            for held, (start, _) in zip(values, vectors, strict=True):
                part = parts.values[row, split, at(start, LANES)]
                held.set(fma(part, splat(factor, "float32", LANES), held.get()))
        inverse = splat(bound(splat(1.0, "float32", 1) / total.get()), "float32", LANES)
        pair, query = (f(row, operands.queries) for f in (tirx.truncdiv, tirx.truncmod))
        batch, head = (bound(f(pair, what.q.count)) for f in (tirx.truncdiv, tirx.truncmod))
        place = (batch, bound(query), head)
        for held, (start, valid) in zip(values, vectors, strict=True):
            store(operands.out, place, start, held.get() * inverse, valid)


def _vectors(depth: int) -> list[tuple[int, int]]:
    """(start, numbers) of each vector of a head."""
    return [(start, min(LANES, depth - start)) for start in range(0, depth, LANES)]
