"""A quantizer's rows where they are computed on the way: a `Prologue`, run row by row.

A row is in the L1 cache from its first sweep to its last, so nothing is written that nobody reads:
the sum and the normalized row go to memory where they are results, and are computed again in
each sweep where they are not. A row that is rotated has a place in that cache, where it is rotated
once: its last sweep computes it there.

Vectors have 16 lanes and every product that is added is an explicit FMA, on all instruction sets.
A row is summed in 16 x 4 partial sums, vector i of it into the i-th mod 4 (vectors behind the last
whole four: the first ones), and these pairwise: the same bits everywhere, and an error that grows
with k / 64. A layer norm's variance is that of the differences to the mean, in a sweep of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.cpu.epilogue import ACTIVATIONS
from lbcompiler.targets.cpu.hadamard import rotate_row
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bound,
    fma,
    let,
    load,
    part,
    prefetch,
    splat,
    store,
    vector,
)
from lbcompiler.targets.cpu.layout import padded

LANES = 16
PARTIAL_SUMS = 4  # vectors: enough to hide the latency of an FMA


class PrologueRows:
    """The rows of an `lbc.fused_quantize`; its float results are arguments behind the operands."""

    def __init__(self, prologue: Prologue) -> None:
        self.prologue = prologue

    def arguments(self, m: Expr, k: int) -> None:
        """x[, other] f32 (m, k)[, gamma][, beta] f32 (k,)[, sum][, row] f32 (m, k)."""
        self.k, spec = k, self.prologue
        norm, has_other = spec.norm != "none", spec.combine != "none"
        self.x = _argument("x", m, k)
        self.other = _argument("other", m, k) if has_other else None
        self.gamma = _argument("gamma", k) if norm else None
        self.beta = _argument("beta", k) if spec.norm == "layer_norm" else None
        self.sum = _argument("sum", m, k) if spec.keeps_sum else None
        self.row = _argument("row", m, k) if spec.keeps_row else None

    def begin(self, row: Expr) -> None:
        """The sweeps of a row up to the last, which `load` is."""
        self._normalized: Callable[[Expr, _Span], Expr] = lambda x, _span: x
        self._row, kept_sum = (
            None if buffer is None else _Place(buffer, (row,)) for buffer in (self.row, self.sum)
        )
        rotation = self.prologue.rotation
        self._rotated = None if rotation is None else _own_place(self.k)
        # where the sum is once it has been computed: what comes later lends its place until then
        held = kept_sum or self._row or self._rotated
        self._held = held if self._is_computed else None
        if self.prologue.norm != "none":
            self._normalize(row)
        elif self._held is not None and self._is_written_first:
            self._sweep(partial(self._write_computed, row, self._held))
        if rotation is not None and self._rotated is not None:
            rotate_row(rotation, self.k, partial(self._finished, row), self._rotated.buffer)

    def load(self, row: Expr, start: Expr, lanes: int, valid: int) -> Expr:
        """`valid` float32 of the finished row from `start` on, zeros in the lanes behind them."""
        place = self._rotated or self._row
        span = _Span(start, lanes, valid)
        if place is not None:
            return place.load(span)
        return bound(self._normalized(self._sum(row, span), span))

    def _finished(self, row: Expr, start: Expr, valid: int) -> Expr:
        """A vector of the row before its rotation, which is kept where that is asked."""
        span = _Span(start, LANES, valid)
        if self.prologue.norm != "none":
            x = self._normalized(self._sum(row, span), span)
        elif self._is_written_first:
            return self._sum(row, span)
        else:
            self._prefetch(row, span)
            x = self._computed(row, span)
        if self._row is not None:
            x = bound(x)
            self._row.store(span, x)
        return x

    @property
    def _is_computed(self) -> bool:
        return self.prologue.activation != "none" or self.prologue.combine != "none"

    @property
    def _is_written_first(self) -> bool:
        """Whether a row without a norm has a sweep of its own.

        An activation does: its chain of operations and that of a rotation, one behind the other,
        are too long to overlap. 512 gated rows of 4096 took 551 us in one sweep.
        """
        return self.prologue.activation != "none" or self.prologue.rotation is None

    def _normalize(self, row: Expr) -> None:
        """Sums, statistics, and the normalized row where it is a result."""
        is_layer_norm = self.prologue.norm == "layer_norm"
        total = _Total()

        def first(span: "_Span") -> None:
            self._prefetch(row, span)
            x = bound(self._computed(row, span))
            if self._held is not None:
                self._held.store(span, x)
            if is_layer_norm:
                total.add(span.slot, x)
            else:
                total.add_product(span.slot, x, x)

        self._sweep(first)
        count = tirx.const(float(self.k), "float32")
        mean = None
        if is_layer_norm:
            mean = bound(total.value() / count)
            total = _Total()

            def second(span: "_Span") -> None:
                x = bound(span.minus(self._sum(row, span), mean))
                total.add_product(span.slot, x, x)

            self._sweep(second)
        variance = total.value() / count + tirx.const(self.prologue.epsilon, "float32")
        scale = bound(tirx.const(1.0, "float32") / tirx.sqrt(variance))

        def normalized(x: Expr, span: "_Span") -> Expr:
            gamma = load(self.gamma, (), span.start, span.lanes, span.valid)
            if mean is None:
                return x * splat(scale, "float32", span.lanes) * gamma
            beta = load(self.beta, (), span.start, span.lanes, span.valid)
            return fma(span.minus(x, mean) * splat(scale, "float32", span.lanes), gamma, beta)

        self._normalized = normalized
        place = self._row
        if place is not None and self._rotated is None:
            self._sweep(lambda span: place.store(span, normalized(self._sum(row, span), span)))

    def _prefetch(self, row: Expr, span: "_Span") -> None:
        """Asks for the next row: until this one is done, nothing else is read from far away.

        Without it K = 1536 with a kept sum took 193 us for 512 rows on two Zen 5 cores, with it 88.
        """
        for buffer in (self.x, self.other, self.sum, self.row):
            if buffer is not None:
                is_result = buffer is self.sum or buffer is self.row
                prefetch(buffer[row + 1, span.start], level=1, to_write=is_result)

    def _sum(self, row: Expr, span: "_Span") -> Expr:
        if self._held is None:
            return self._computed(row, span)
        return let(self._held.load(span))

    def _computed(self, row: Expr, span: "_Span") -> Expr:
        """activation(x) combine other."""
        x = let(load(self.x, (row,), span.start, span.lanes, span.valid))
        if self.prologue.activation != "none":
            x = bound(span.masked(ACTIVATIONS[self.prologue.activation](x)))
        if self.other is None:
            return x
        other = let(load(self.other, (row,), span.start, span.lanes, span.valid))
        return x + other if self.prologue.combine == "add" else x * other

    def _write_computed(self, row: Expr, place: "_Place", span: "_Span") -> None:
        self._prefetch(row, span)
        place.store(span, self._computed(row, span))

    def _sweep(self, one: Callable[["_Span"], None]) -> None:
        """`one` for every vector of a row, four in a step of a loop."""
        step = LANES * PARTIAL_SUMS
        if self.k // step:
            with T.serial(self.k // step) as index:
                IRBuilder.name("step", index)
                for slot in range(PARTIAL_SUMS):
                    one(_Span(index * step + slot * LANES, LANES, LANES, slot))
        begin = self.k // step * step
        for slot, start in enumerate(range(begin, self.k, LANES)):
            one(_Span(start, LANES, min(LANES, self.k - start), slot))


@dataclass(frozen=True)
class _Place:
    """Where the values of one row are: a row of a matrix, or a buffer of its own."""

    buffer: Any
    at: tuple[Expr, ...]

    def load(self, span: "_Span") -> Expr:
        return load(self.buffer, self.at, span.start, span.lanes, span.valid)

    def store(self, span: "_Span", value: Expr) -> None:
        store(self.buffer, self.at, span.start, value, span.valid)


def _own_place(k: int) -> _Place:
    return _Place(T.alloc_buffer((padded(k, LANES),), "float32"), ())


@dataclass(frozen=True)
class _Span:
    """`valid` elements of a row from `start` on, in a vector; `slot`: their partial sum."""

    start: Expr
    lanes: int
    valid: int
    slot: int = 0

    def masked(self, x: Expr) -> Expr:
        """x with zeros behind the valid lanes."""
        if self.valid == self.lanes:
            return x
        return x * self._spread(tirx.const(1.0, "float32"))

    def minus(self, x: Expr, number: Expr) -> Expr:
        """x - number in the valid lanes; the others stay as they are."""
        return x - self._spread(number)

    def _spread(self, number: Expr) -> Expr:
        if self.valid == self.lanes:
            return splat(number, "float32", self.lanes)
        behind = [tirx.const(0.0, "float32")] * (self.lanes - self.valid)
        return vector([*[number] * self.valid, *behind])


class _Total:
    """The partial sums of a row."""

    def __init__(self) -> None:
        self.sums = [T.alloc_buffer((LANES,), "float32") for _ in range(PARTIAL_SUMS)]
        for held in self.sums:
            T.buffer_store(held, splat(0.0, "float32", LANES), [at(0, LANES)])

    def add(self, slot: int, x: Expr) -> None:
        held = self.sums[slot]
        T.buffer_store(held, held[at(0, LANES)] + x, [at(0, LANES)])

    def add_product(self, slot: int, a: Expr, b: Expr) -> None:
        held = self.sums[slot]
        T.buffer_store(held, fma(a, b, held[at(0, LANES)]), [at(0, LANES)])

    def value(self) -> Expr:
        """All of them together, a scalar."""
        a, b, c, d = (held[at(0, LANES)] for held in self.sums)
        total = bound((a + b) + (c + d))
        lanes = LANES
        while lanes > 1:
            lanes //= 2
            total = bound(part(total, 0, lanes) + part(total, lanes, lanes))
        return total


def _argument(name: str, *shape: Expr) -> Any:
    return T.arg(name, T.buffer(shape, "float32"))
