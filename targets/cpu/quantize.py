"""Dynamic quantization of activations on their way into a GEMM: what `BlockFormat.quantize`
defines, bit for bit.

The operands of an integer GEMM are not codes but what its loop multiplies: small integers, scales
in float32 with the elements' multipliers taken off, and for each block the value that an int32
accumulator starts from, -zero point * sum. Those of a float GEMM are code * scale, which is exact
in float32; as pairs of bfloat16 where a GEMM takes those (float_activations.py).

Rows are independent, and parallel. Within a row sixteen blocks go together: their maxima end up in
the lanes of one vector, which all of the arithmetic of scales then takes at once, and so do their
sums. What is left of a row goes in eight, four, two and one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import plain
from lbcompiler.targets.cpu.block_scales import LARGEST, RULES, Scales, scales_of
from lbcompiler.targets.cpu.decode import divisor
from lbcompiler.targets.cpu.float_activations import PairRows
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    at,
    bits_of,
    bound,
    cast,
    choose,
    every,
    fma,
    kernel,
    lanes_at,
    let,
    like,
    load,
    maximum,
    real_of,
    reduce_each,
    reduce_max_unsigned,
    root_block,
    shift_right,
    splat,
    spread,
    store,
)
from lbcompiler.targets.cpu.layout import padded, row_stride
from lbcompiler.targets.cpu.rounding import INFINITY_BITS, magnitude_bits, to_integers, to_values

LANES = 16  # of a vector here, on every instruction set: half a block of 32
_SMALLEST_TENSOR_SCALE = 2.0**-126


class Source(Protocol):
    """Where a quantizer has its rows from: x itself, or what computes them on the way."""

    def arguments(self, m: Expr, k: int) -> None:
        """Declares the function's first arguments, for (m, k) rows."""

    def begin(self, row: Expr) -> None:
        """Emits what a row needs before any of it is loaded."""

    def load(self, row: Expr, start: Expr, lanes: int, valid: int) -> Expr:
        """`valid` float32 of the row from `start` on, zeros in the lanes behind them.

        Every place of a row is loaded two or three times.
        """


class Rows:
    """x f32 (M, k) as it is."""

    def arguments(self, m: Expr, k: int) -> None:
        self.x = T.arg("x", T.buffer((m, k), "float32"))

    def begin(self, row: Expr) -> None:
        """Nothing."""

    def load(self, row: Expr, start: Expr, lanes: int, valid: int) -> Expr:
        return load(self.x, (row,), start, lanes, valid)


@dataclass(frozen=True)
class Group:
    """`count` blocks of a row from block `first` on: `valid` k's of the last, none beyond it."""

    row: Expr
    first: Expr
    count: int
    block: int
    valid: int
    load: Callable[[Expr, int], Expr]  # (start, valid) -> vector

    @property
    def lanes(self) -> int:
        """Lanes that each block has in a vector of all blocks."""
        return LANES // self.count

    def vectors(self, j: int, whole: int = LANES) -> list[tuple[Expr, Expr, int]]:
        """(start, vector, valid lanes) of block j, which is padded with zeros to `whole` k's."""
        valid = self.valid if j == self.count - 1 else self.block
        start = let((self.first + j) * self.block)
        return [
            (start + i, let(self.load(start + i, lanes)), lanes)
            for i in range(0, padded(valid, whole), LANES)
            for lanes in [max(0, min(LANES, valid - i))]
        ]


Emit = Callable[[Group, Scales], None]


@dataclass(frozen=True)
class Quantizer:
    """x f32 (M, k) -> the operands of a GEMM, for one activation format.

    A function's first arguments are those of the source: x, unless it computes the rows.
    """

    fmt: BlockFormat
    source: Source = field(default_factory=Rows)

    def check(self, rule: str) -> None:
        """ConfigError for a rule that only weights, quantized at leisure, can have."""
        known = RULES[self.fmt.scale]
        if rule not in known:
            raise ConfigError(
                f"activations of {self.fmt.name} cannot be quantized by the scale rule {rule!r}, "
                f"which searches; on the fly there are: {', '.join(known)}."
            )

    def integer_operands(
        self,
        k: int,
        rule: str,
        *,
        block: int,
        zero_point: int,
        weight_divisor: int,
        has_flags: bool,
    ) -> Any:
        """PrimFunc(x, values, scales, starts[, flags][, row_scales]) for a GEMM in blocks of
        `block`.

        values int8 (M, row_stride(Kp)), Kp = k padded to `block`; scales f32 (M, ceil(k /
        fmt.block)), divided by both elements' multipliers; starts int32 (M, Kp / block); flags
        int32 (M, 1), not 0 where a scale of the row is not plain; row_scales f32 (M, 1).
        """
        self.check(rule)
        blocks = -(-k // block)

        def body(m: Any) -> None:
            self.source.arguments(m, k)
            values = T.arg("values", T.buffer((m, row_stride(blocks * block)), "int8"))
            scales = T.arg("scales", T.buffer((m, self.fmt.blocks(k)), "float32"))
            starts = T.arg("starts", T.buffer((m, blocks), "int32"))
            flags = T.arg("flags", T.buffer((m, 1), "int32")) if has_flags else None
            row_scales = self._row_scales(m)
            divided = divisor(self.fmt.element) * weight_divisor
            inverse = 1.0 / divided

            unusual = _Flags(flags, plain.ADDED, divided)

            def emit(group: Group, scale: Scales) -> None:
                by = like(scale.value, "float32", inverse)
                lanes = at(group.first, group.count)
                T.buffer_store(scales, every(scale.value * by, group.count), [group.row, lanes])
                unusual.add(scale)
                totals = []
                for j in range(group.count):
                    parts = []
                    for start, vector, _ in group.vectors(j, block):
                        units = scale.units(vector, j * group.lanes)
                        parts.append(bound(to_integers(self.fmt.element, units)))
                        place = [group.row, at(start, LANES)]
                        T.buffer_store(values, cast("int8", parts[-1]), place)
                    span = block // LANES
                    for i in range(0, len(parts), span):
                        totals.append(parts[i] if span == 1 else bound(parts[i] + parts[i + 1]))
                first = group.first * (self.fmt.block // block)
                _store_starts(starts, group.row, first, totals, -zero_point)

            self._emit_rows(m, k, rule, row_scales, emit, unusual)

        return _prim_func(body)

    def float_operands(self, k: int, rule: str) -> Any:
        """PrimFunc(x, values[, row_scales]): values f32 (M, k) are code * scale, row_scales f32 (M,
        1).
        """
        self.check(rule)

        def body(m: Any) -> None:
            self.source.arguments(m, k)
            values = T.arg("values", T.buffer((m, k), "float32"))
            row_scales = self._row_scales(m)

            def emit(group: Group, scale: Scales) -> None:
                for j in range(group.count):
                    by = bound(spread(scale.value, j * group.lanes))
                    for start, vector, valid in group.vectors(j):
                        units = scale.units(vector, j * group.lanes)
                        value = to_values(self.fmt.element, units) * by
                        store(values, (group.row,), start, value, valid)

            self._emit_rows(m, k, rule, row_scales, emit)

        return _prim_func(body)

    def pair_operands(self, k: int, rule: str) -> Any:
        """PrimFunc(x, the operands of `float_activations.PairRows`[, row_scales])."""
        self.check(rule)

        def body(m: Any) -> None:
            self.source.arguments(m, k)
            out = PairRows.declare(self.fmt, m, k)
            row_scales = self._row_scales(m)
            unusual = _Flags(out.flags, plain.BFLOAT16)

            def emit(group: Group, scale: Scales) -> None:
                factor = scale.value
                if out.scales is not None:
                    one, is_unusual = like(factor, "float32", 1.0), bound(unusual.add(scale))
                    lanes = [group.row, at(group.first, group.count)]
                    kept = choose(is_unusual > like(is_unusual, "int32", 0), factor, one)
                    T.buffer_store(out.scales, every(kept, group.count), lanes)
                    factor = choose(is_unusual > like(is_unusual, "int32", 0), one, factor)
                factor = bound(factor)
                for j in range(group.count):
                    by = bound(spread(factor, j * group.lanes))
                    for start, vector, _ in group.vectors(j):
                        units = scale.units(vector, j * group.lanes)
                        value = bits_of(bound(to_values(self.fmt.element, units) * by))
                        high, low = (lanes_at(value, range(i, LANES, 2)) for i in (0, 1))
                        pairs = high | shift_right(low, 16)
                        T.buffer_store(out.pairs, pairs, [group.row, at(start // 2, LANES // 2)])

            self._emit_rows(m, k, rule, row_scales, emit, unusual)

        return _prim_func(body)

    def _row_scales(self, m: Any) -> Any:
        if not self.fmt.has_tensor_scale:
            return None
        return T.arg("row_scales", T.buffer((m, 1), "float32"))

    def _emit_rows(
        self,
        m: Any,
        k: int,
        rule: str,
        row_scales: Any,
        emit: Emit,
        flags: "_Flags | None" = None,
    ) -> None:
        """`emit` for every group of blocks of every row."""
        with root_block(), T.parallel(m) as row:
            IRBuilder.name("row", row)
            self.source.begin(row)
            if flags is not None:
                flags.begin()
            g = None
            if row_scales is not None:
                g = bound(self._row_scale(row, k, rule))
                T.buffer_store(row_scales, g, [row, 0])

            def load_from(start: Expr, valid: int) -> Expr:
                return self.source.load(row, start, LANES, valid)

            for first, count, valid in _groups(k, self.fmt.block):
                group = Group(row, first, count, self.fmt.block, valid, load_from)
                errors = partial(self._errors, group)
                emit(group, scales_of(self.fmt, rule, _maxima(group), g, errors))
            if flags is not None:
                flags.finish(row)

    def _errors(self, group: Group, scale: Scales) -> Expr:
        """Sum over each block of (x / scale - code)^2, float32 in the block's lanes; of blocks of
        one vector. Added in halves, as the reference does.
        """
        squares = []
        for j in range(group.count):
            ((_, vector, _),) = group.vectors(j)
            units = scale.units(vector, j * group.lanes)
            error = bound(units - to_values(self.fmt.element, units))
            # an FMA with zero is a product that no sum behind it can take into an FMA of its own
            squares.append(bound(fma(error, error, like(error, "float32", 0.0))))
        return reduce_each(squares, lambda a, b: a + b)

    def _row_scale(self, row: Expr, k: int, rule: str) -> Expr:
        """g: the largest finite |x| of the row over max * the rule's largest scale, at least
        2^-126; 1 for a row of zeros.
        """
        largest = Registers(1, "int32", LANES)
        largest[0] = splat(0, "int32", LANES)

        def one_vector(start: Expr, valid: int) -> None:
            bits = let(magnitude_bits(self.source.load(row, start, LANES, valid)))
            is_finite = bits < like(bits, "int32", INFINITY_BITS)
            finite = choose(is_finite, bits, like(bits, "int32", 0))
            largest[0] = maximum(largest[0], finite)

        if k // LANES:
            with T.serial(k // LANES) as i:
                one_vector(let(i * LANES), LANES)
        if k % LANES:
            one_vector(k // LANES * LANES, k % LANES)
        amax = bound(real_of(reduce_max_unsigned(largest[0])))
        g = bound(amax / _number(self.fmt.element.max * LARGEST[rule]))
        at_least = tirx.Select(
            g < _number(_SMALLEST_TENSOR_SCALE), _number(_SMALLEST_TENSOR_SCALE), g
        )
        return tirx.Select(amax <= _number(0.0), _number(1.0), at_least)


class _Flags:
    """Whether a row has a scale that is not plain, gathered over its blocks, where it is asked."""

    def __init__(self, flags: Any, limit: int, divided: int = 1) -> None:
        self.flags, self.limit, self.divided = flags, limit, divided

    def begin(self) -> None:
        if self.flags is not None:
            self.found = Registers(1, "int32", LANES)
            self.found[0] = splat(0, "int32", LANES)

    def add(self, scale: Scales) -> Expr:
        """1 in the lanes of blocks whose scale is not plain, 0 in others."""
        if self.flags is None:
            return None
        zero, one = (splat(value, "int32", LANES) for value in (0, 1))
        flag = bound(choose(scale.is_unusual(self.limit, self.divided), one, zero))
        self.found[0] = self.found[0] | flag
        return flag

    def finish(self, row: Expr) -> None:
        if self.flags is not None:
            total = reduce_max_unsigned(self.found[0])
            T.buffer_store(self.flags, total, [row, 0])


def _groups(k: int, block: int) -> Iterator[tuple[Expr, int, int]]:
    """(first block, blocks, k's of the last) that make up a row; the first kind within its loop."""
    whole = k // block
    if whole // LANES:
        with T.serial(whole // LANES) as i:
            IRBuilder.name("group", i)
            yield let(i * LANES), LANES, block
    done = whole // LANES * LANES
    for count in (8, 4, 2, 1):
        if whole & count:
            yield done, count, block
            done += count
    if k % block:
        yield whole, 1, k % block


def _maxima(group: Group) -> Expr:
    """int32 bits of each block's largest |x|."""
    largest = []
    for j in range(group.count):
        bits = [magnitude_bits(vector) for _, vector, _ in group.vectors(j)]
        total = bits[0]
        for other in bits[1:]:
            total = maximum(total, other)
        largest.append(bound(total))
    return reduce_each(largest, maximum)


def _store_starts(starts: Any, row: Expr, first: Expr, totals: list[Expr], factor: int) -> None:
    """factor * the sum of each vector, to starts[row, first] on."""
    done = 0
    while done < len(totals):
        count = 1 << min(4, (len(totals) - done).bit_length() - 1)
        sums = every(reduce_each(totals[done : done + count], lambda a, b: a + b), count)
        T.buffer_store(starts, sums * like(sums, "int32", factor), [row, at(first + done, count)])
        done += count


def _prim_func(body: Callable[[Any], None]) -> Any:
    with kernel() as builder:
        body(tirx.Var("m", "int64"))
    return builder.get()


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")
