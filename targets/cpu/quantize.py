"""Dynamic quantization of activations on their way into a GEMM: what `BlockFormat.quantize`
defines, bit for bit.

The operands of an integer GEMM are not codes but what its loop multiplies: small integers, scales
in float32 with the elements' multipliers taken off, and for each block the value that an int32
accumulator starts from, -zero point * sum. Those of a float GEMM are code * scale, which is exact
in float32. Rows are independent, and parallel.

Rounding is to nearest even by addition of a constant whose last bit is worth one step of the
element. No product is added to anything here before it is rounded: contraction into an FMA could
only change what is exact anyway.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat, Element
from lbcompiler.targets.cpu.decode import NAN_BITS, divisor
from lbcompiler.targets.cpu.integer_products import PLAIN
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bits_of,
    bound,
    cast,
    choose,
    fma,
    kernel,
    let,
    like,
    load,
    maximum,
    minimum,
    real_of,
    reduce_max_unsigned,
    reduce_sum,
    root_block,
    splat,
    store,
)
from lbcompiler.targets.cpu.layout import padded, row_stride

LANES = 16  # of a vector here, on every instruction set: half a block of 32
INFINITY_BITS = 0x7F800000
RULES = {"e8m0": ("floor", "rceil", "even"), "e4m3": ("absmax",)}
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
_ROUND_BITS = 0x4B400000
_SMALLEST_TENSOR_SCALE = 2.0**-126


@dataclass(frozen=True)
class _Scale:
    """A block's scale as scalars: `value` is NaN for a block that has one, `keep` then 0, else -1.

    `scaled` turns a vector of the block into units of the scale.
    """

    value: Expr
    keep: Expr
    scaled: Callable[[Expr], Expr]
    exponent: Expr | None = None  # of a power of two


class Source(Protocol):
    """Where a quantizer has its rows from: x itself, or what computes them on the way."""

    def arguments(self, m: Expr, k: int) -> None:
        """Declares the function's first arguments, for (m, k) rows."""

    def begin(self, row: Expr) -> None:
        """Emits what a row needs before any of it is loaded."""

    def load(self, row: Expr, start: Expr, lanes: int, valid: int) -> Expr:
        """`valid` float32 of the row from `start` on, zeros in the lanes behind them."""


class Rows:
    """x f32 (M, k) as it is."""

    def arguments(self, m: Expr, k: int) -> None:
        self.x = T.arg("x", T.buffer((m, k), "float32"))

    def begin(self, row: Expr) -> None:
        """Nothing."""

    def load(self, row: Expr, start: Expr, lanes: int, valid: int) -> Expr:
        return load(self.x, (row,), start, lanes, valid)


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

            def emit(row: Expr, index: Expr, vectors: list[Expr], scale: _Scale) -> None:
                T.buffer_store(scales, scale.value * tirx.const(inverse, "float32"), [row, index])
                if flags is not None:
                    flag = _is_unusual(scale, divided)
                    T.buffer_store(flags, flags[row, 0] | flag, [row, 0])
                integers = [bound(self._integers(scale, vector)) for vector in vectors]
                for i, vector in enumerate(integers):
                    start = index * self.fmt.block + i * LANES
                    T.buffer_store(values, cast("int8", vector), [row, at(start, LANES)])
                span = block // LANES
                for i in range(0, len(integers), span):
                    total = integers[i]
                    for vector in integers[i + 1 : i + span]:
                        total = total + vector
                    start = reduce_sum(total) * tirx.const(-zero_point, "int32")
                    position = index * (self.fmt.block // block) + i // span
                    T.buffer_store(starts, start, [row, position])

            def begin(row: Expr) -> None:
                if flags is not None:
                    T.buffer_store(flags, _integer(0), [row, 0])

            self._emit_rows(m, k, rule, row_scales, emit, block, begin)

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

            def emit(row: Expr, index: Expr, vectors: list[Expr], scale: _Scale) -> None:
                for i, vector in enumerate(vectors):
                    start = index * self.fmt.block + i * LANES
                    valid = min(LANES, k - int(start)) if isinstance(index, int) else LANES
                    rounded = self._rounded(scale, vector)
                    spread = splat(scale.value, "float32", LANES)
                    store(values, (row,), start, rounded * spread, valid)

            self._emit_rows(m, k, rule, row_scales, emit, LANES)

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
        emit: Callable[[Expr, Expr, list[Expr], _Scale], None],
        whole: int,
        begin: Callable[[Expr], None] = lambda _row: None,
    ) -> None:
        """`emit(row, block index, vectors, scale)` for every block; the last is padded to `whole`
        k's.
        """
        block = self.fmt.block
        with root_block(), T.parallel(m) as row:
            IRBuilder.name("row", row)
            begin(row)
            self.source.begin(row)
            g = None
            if row_scales is not None:
                g = bound(self._row_scale(row, k))
                T.buffer_store(row_scales, g, [row, 0])

            def one_block(index: Expr, count: int) -> None:
                vectors = []
                for start in range(0, padded(count, whole), LANES):
                    valid = max(0, min(LANES, count - start))
                    vectors.append(let(self.source.load(row, index * block + start, LANES, valid)))
                emit(row, index, vectors, self._scale(vectors, rule, g))

            if k // block:
                with T.serial(k // block) as index:
                    IRBuilder.name("block", index)
                    one_block(index, block)
            if k % block:
                one_block(k // block, k % block)

    def _row_scale(self, row: Expr, k: int) -> Expr:
        """g: the largest finite |x| of the row over max * 448, at least 2^-126; 1 for a row of
        zeros.
        """
        largest = T.alloc_buffer((LANES,), "int32", scope="local")
        lanes = at(0, LANES)
        T.buffer_store(largest, splat(0, "int32", LANES), [lanes])

        def one_vector(start: Expr, valid: int) -> None:
            bits = let(_magnitude_bits(self.source.load(row, start, LANES, valid)))
            is_finite = bits < like(bits, "int32", INFINITY_BITS)
            finite = choose(is_finite, bits, like(bits, "int32", 0))
            T.buffer_store(largest, maximum(largest[lanes], finite), [lanes])

        if k // LANES:
            with T.serial(k // LANES) as i:
                one_vector(let(i * LANES), LANES)
        if k % LANES:
            one_vector(k // LANES * LANES, k % LANES)
        amax = bound(real_of(reduce_max_unsigned(largest[lanes])))
        g = bound(amax / _number(self.fmt.element.max * 448.0))
        at_least = tirx.Select(
            g < _number(_SMALLEST_TENSOR_SCALE), _number(_SMALLEST_TENSOR_SCALE), g
        )
        return tirx.Select(amax <= _number(0.0), _number(1.0), at_least)

    def _scale(self, vectors: list[Expr], rule: str, g: Expr | None) -> _Scale:
        bits = _magnitude_bits(vectors[0])
        for vector in vectors[1:]:
            bits = maximum(bits, _magnitude_bits(vector))
        amax = bound(reduce_max_unsigned(bits))
        is_finite = amax < _integer(INFINITY_BITS)
        finite = bound(tirx.Select(is_finite, amax, _integer(0)))
        keep = bound(tirx.Select(_integer(0) < finite, _integer(-1), _integer(0)))
        if g is None:
            return self._power_scale(finite, is_finite, keep, rule)
        return self._e4m3_scale(finite, is_finite, keep, g)

    def _power_scale(self, amax: Expr, is_finite: Expr, keep: Expr, rule: str) -> _Scale:
        exponent = _clamped(_exponent(amax, self.fmt.element, rule), -127, 127)
        exponent = bound(exponent & keep)  # a block of zeros: any scale does, and 1 is plain
        value = real_of(tirx.Select(is_finite, _power_bits(exponent), _integer(NAN_BITS)))
        inverse = bound(real_of(_power_bits(_integer(0) - exponent)))
        by = splat(inverse, "float32", LANES)
        kept = bound(tirx.Select(is_finite, exponent, _integer(2 * PLAIN)))
        return _Scale(bound(value), keep, lambda x: x * by, kept)

    def _e4m3_scale(self, amax: Expr, is_finite: Expr, keep: Expr, g: Expr) -> _Scale:
        ratio = bound(real_of(amax) / _number(self.fmt.element.max) / g)
        ratio = bound(tirx.Select(ratio < _number(2.0**-9), _number(2.0**-9), ratio))
        ratio = bound(tirx.Select(_number(448.0) < ratio, _number(448.0), ratio))
        rounded = bound(_to_nearest(ratio, mantissa_bits=3, smallest_exponent=-6))
        value = real_of(tirx.Select(is_finite, bits_of(rounded), _integer(NAN_BITS)))
        by = bound(rounded * g)
        return _Scale(bound(value), keep, lambda x: x / splat(by, "float32", LANES))

    def _units(self, scale: _Scale, vector: Expr) -> Expr:
        """x in units of the scale; zeros, without sign, in a block of zeros or with a NaN."""
        kept = real_of(bits_of(vector) & splat(scale.keep, "int32", LANES))
        return bound(scale.scaled(kept))

    def _integers(self, scale: _Scale, vector: Expr) -> Expr:
        """The codes' values times the element's multiplier, int32."""
        units = self._units(scale, vector)
        if self.fmt.element.is_integer:
            return _nearest_integer(units, int(self.fmt.element.max))
        rounded = self._nearest_float(units)
        return cast("int32", rounded * like(rounded, "float32", divisor(self.fmt.element)))

    def _rounded(self, scale: _Scale, vector: Expr) -> Expr:
        """The codes' values."""
        units = self._units(scale, vector)
        if self.fmt.element.is_integer:
            return cast("float32", _nearest_integer(units, int(self.fmt.element.max)))
        return self._nearest_float(units)

    def _nearest_float(self, units: Expr) -> Expr:
        """To the nearest value of a float element, saturated; the sign stays even at zero."""
        element = self.fmt.element
        bits = bound(bits_of(units))
        magnitude = bound(real_of(bits & like(bits, "int32", 0x7FFFFFFF)))
        rounded = bits_of(_to_nearest(magnitude, element.mantissa_bits, element.smallest_exponent))
        limit = bits_of(like(units, "float32", element.max))
        sign = bits & like(bits, "int32", -(1 << 31))
        return bound(real_of(minimum(rounded, limit) | sign))


def _prim_func(body: Callable[[Any], None]) -> Any:
    with kernel() as builder:
        body(tirx.Var("m", "int64"))
    return builder.get()


def _integer(value: int) -> Expr:
    return tirx.const(value, "int32")


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")


def _is_unusual(scale: _Scale, divided: int) -> Expr:
    """1 where the scale, a power of two over `divided`, is not plain; 0 where it is."""
    exponent = bound(scale.exponent - _integer(int(np.log2(divided))))
    is_plain = tirx.all(exponent <= _integer(PLAIN), exponent >= _integer(-PLAIN))
    return tirx.Select(is_plain, _integer(0), _integer(1))


def _magnitude_bits(x: Expr) -> Expr:
    return bits_of(x) & like(x, "int32", 0x7FFFFFFF)


def _clamped(x: Expr, low: int, high: int) -> Expr:
    return minimum(maximum(x, _integer(low)), _integer(high))


def _exponent(amax: Expr, element: Element, rule: str) -> Expr:
    """The block's exponent by a rule of `formats.scale_rules`, from the bits of its largest |x|."""
    if rule == "rceil":
        limit = int(np.float32(element.max).view(np.int32))
        return (amax + _integer((1 << 23) - 1 - limit)) >> _integer(23)
    carry = 1 << (22 - element.mantissa_bits) if rule == "even" else 0
    return ((amax + _integer(carry)) >> _integer(23)) - _integer(127 + element.largest_exponent)


def _power_bits(exponent: Expr) -> Expr:
    """The float32 bits of 2^exponent, in [-127, 127]: the least is a subnormal."""
    return maximum((exponent + _integer(127)) << _integer(23), _integer(1 << 22))


def _to_nearest(x: Expr, mantissa_bits: int, smallest_exponent: int) -> Expr:
    """Non-negative x to the nearest float of so many mantissa bits, ties to even."""
    binade = bits_of(x) & like(x, "int32", INFINITY_BITS)
    binade = maximum(binade, like(x, "int32", (smallest_exponent + 127) << 23))
    step = bound(real_of(binade + like(x, "int32", (23 - mantissa_bits) << 23)))
    return fma(x, like(x, "float32", 1.0), step) - step  # x + step that TVM does not cancel


def _nearest_integer(x: Expr, limit: int) -> Expr:
    """int32 of x to the nearest, ties to even, within +-limit."""
    rounded = bits_of(x + like(x, "float32", _ROUND)) - like(x, "int32", _ROUND_BITS)
    return minimum(maximum(rounded, like(x, "int32", -limit)), like(x, "int32", limit))
