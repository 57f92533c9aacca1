"""Codes and scale bytes to numbers, inside the kernels: integer bit operations and one table
look-up.

TVM's own conversions from 8- and 4-bit floats are wrong on LLVM, so none is used. Every code and
every scale byte has its defined value here, NaN and infinities too; the tests go through all of
them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from lbcompiler.formats import Element
from lbcompiler.formats.scales import E8M0_BIAS
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    bits_of,
    bound,
    call,
    cast,
    choose,
    difference_or_zero,
    lanes_of,
    let,
    like,
    look_up,
    look_up_float,
    maximum,
    real_of,
    vector,
    wide,
)
from lbcompiler.targets.cpu.isa import GENERIC, Isa
from lbcompiler.targets.cpu.layout import offset_mask

NAN_BITS = 0x7FC00000
_BFLOAT16 = 7  # bits of its mantissa


def group_count(element: Element) -> int:
    """k-groups that one load of each plane holds."""
    return {8: 1, 4: 2, 6: 4}[element.bits]


def stored_codes(element: Element, planes: list[list[Expr]]) -> list[Expr]:
    """The stored codes, uint8 vectors, one a k-group, of byte vectors of each plane (layout.py)."""
    if element.bits == 8:
        return planes[0]
    nibbles = []
    for pair in planes[0]:
        nibbles += [pair & like(pair, "uint8", 15), pair >> like(pair, "uint8", 4)]
    if element.bits == 4:
        return nibbles
    q = planes[1][0]
    four, two = like(q, "uint8", 4), like(q, "uint8", 2)
    shifted = [q << four, q << two, q, q >> two]
    upper = [s & like(q, "uint8", 48) for s in shifted]
    return [bound(n | s) for n, s in zip(nibbles, upper, strict=True)]


def zero_point(element: Element) -> int:
    """What `unsigned_operand` of the code of zero is."""
    if element.is_integer:
        return 1 << (element.bits - 1)
    return int(element.max * divisor(element))


def unsigned_limit(element: Element) -> int:
    """The largest value of `unsigned_operand`."""
    return (1 << element.bits) - 1 if element.is_integer else 2 * zero_point(element)


def unsigned_operand(isa: Isa, element: Element, stored: Expr) -> Expr:
    """uint8: the code's value times the element's integer multiplier, plus the zero point."""
    if element.is_integer:
        return stored
    zero = zero_point(element)
    if element.bits == 4 and isa != GENERIC:
        table = [zero + int(value) for value in element.values * divisor(element)]
        return look_up(isa, table, stored)
    value = _magnitude(element, stored, "uint8")
    sum_, difference = like(stored, "uint8", zero) + value, like(stored, "uint8", zero) - value
    return choose(_is_negative(element, stored, "uint8"), difference, sum_)


def divisor(element: Element) -> int:
    """What `real_value` is too large by: a power of two, which the caller folds into the scale."""
    return element.integer_multiplier or 1


def real_value(isa: Isa, element: Element, stored: Expr) -> Expr:
    """float32: the codes' values times `divisor`."""
    if element.integer_multiplier is None and isa != GENERIC:
        return _through_half(element.exponent_bits, element.mantissa_bits, stored)
    code = bound(cast("int32", stored))
    if element.bits == 4 and isa.is_avx512:
        flipped = np.arange(16) ^ offset_mask(element)
        return look_up_float(element.values[flipped] * divisor(element), code)
    if element.is_integer:
        return cast("float32", code - like(code, "int32", zero_point(element)))
    if element.integer_multiplier is None:
        nan_from = {"e4m3": 127, "e5m2": 124}.get(element.name)
        return _small_float(code, element.exponent_bits, element.mantissa_bits, nan_from)
    value = _magnitude(element, code, "int32")
    negative = like(code, "int32", 0) - value
    return cast("float32", choose(_is_negative(element, code, "int32"), negative, value))


def raised(words: Expr, exponent: Expr) -> Expr:
    """bfloat16 * 2^exponent of int16 lanes whose exponents stay normal: `exponent` is shifted to
    theirs (`exponents_of_words`). Zeros must be +0, and stay.
    """
    zero = like(words, "int16", 0)
    return bound(choose(tirx.NE(words, zero), words + exponent, zero))


def exponents_of_words(stored: Expr) -> Expr:
    """What `raised` adds for 16 E8M0 bytes: int16x32, each for two words."""
    byte = cast("int32", stored)
    exponent = bound((byte - like(byte, "int32", E8M0_BIAS)) << like(byte, "int32", _BFLOAT16))
    both = (exponent & like(exponent, "int32", 0xFFFF)) | exponent << like(exponent, "int32", 16)
    return bound(tirx.reinterpret(wide("int16", 2 * lanes_of(stored)), both))


def byte_words(element: Element, code: Expr, exponent: Expr) -> Expr:
    """Codes of E4M3 or E5M2 in 32 lanes of int16 -> the bits of bfloat16 * 2^exponent.

    The fields of a normal number move up and get another bias; subnormals, and what is no finite
    number, are looked up: `vpermw` takes the low five bits of a code.
    """
    mantissa, sign = element.mantissa_bits, 1 << (element.bits - 1)
    magnitudes = element.values[:sign]
    subnormals, finite = 1 << mantissa, int(np.isfinite(magnitudes).sum())
    low, high = magnitudes[:subnormals], magnitudes[-subnormals:]
    values = np.concatenate([low, np.zeros(32 - 2 * subnormals), high]).astype(np.float32)
    table = tirx.reinterpret("int16x32", word_table(values))
    found = bound(call("int16x32", "llvm.x86.avx512.permvar.hi.512", table, code))
    magnitude = bound(code & like(code, "int16", sign - 1))
    bias = (E8M0_BIAS + element.smallest_exponent - 1) << _BFLOAT16
    moved = magnitude << like(code, "int16", _BFLOAT16 - mantissa)
    normal = moved + like(code, "int16", bias)
    value = bound(choose(magnitude < like(code, "int16", subnormals), found, normal))
    value = raised(value, exponent)
    value = choose(magnitude < like(code, "int16", finite), value, found)
    return bound(
        value | (code & like(code, "int16", sign)) << like(code, "int16", 16 - element.bits)
    )


def word_table(values: NDArray[Any]) -> Expr:
    """32 float32 that are exact in bfloat16, as its bits, for `vpermw`: int32x16."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint16)[1::2].copy().view(np.int32)
    return vector([tirx.const(int(word), "int32") for word in words])


def scale_value(isa: Isa, kind: str, stored: Expr) -> Expr:
    """Scale bytes (uint8 vector) of kind e8m0 or e4m3 -> float32, exact; 0xFF, and 0x7F of e4m3,
    are NaN.
    """
    if kind == "e4m3" and isa != GENERIC:
        return _through_half(4, 3, stored)
    byte = let(cast("int32", stored))
    if kind == "e4m3":
        return _small_float(byte, exponent_bits=4, mantissa_bits=3, nan_from=127)
    shifted = byte << like(byte, "int32", 23)
    at_least = maximum(shifted, like(byte, "int32", 1 << 22))  # byte 0: 2^-127, a subnormal
    is_nan = tirx.EQ(byte, like(byte, "int32", 255))
    return real_of(choose(is_nan, like(byte, "int32", NAN_BITS), at_least))


def _through_half(exponent_bits: int, mantissa_bits: int, stored: Expr) -> Expr:
    """Codes of E4M3, E5M2 or E3M2 -> float32: a half float with the same fields is the value over a
    power of two, subnormals too, and the processor converts it.
    """
    lanes = lanes_of(stored)
    code = tirx.Cast(wide("int16", lanes), stored)
    shift, width = 10 - mantissa_bits, exponent_bits + mantissa_bits
    magnitude = (1 << width) - 1
    if exponent_bits == 5:
        half = code << like(code, "int16", shift)
    else:
        fields = bound((code & like(code, "int16", magnitude)) << like(code, "int16", shift))
        if exponent_bits == 4:  # the one NaN of E4M3
            is_nan = tirx.EQ(fields, like(code, "int16", magnitude << shift))
            fields = choose(is_nan, like(code, "int16", 0x7E00), fields)
        half = fields | (code & like(code, "int16", 1 << width)) << like(code, "int16", 15 - width)
    value = tirx.Cast(wide("float32", lanes), tirx.reinterpret(wide("float16", lanes), half))
    bias = (1 << (exponent_bits - 1)) - 1
    return value if bias == 15 else value * like(value, "float32", 2.0 ** (15 - bias))


def _magnitude(element: Element, code: Expr, kind: str) -> Expr:
    """|value| times the multiplier of an E2Mx code: convex in the code, so the largest of three
    lines.
    """
    once = bound(code & like(code, kind, (1 << (element.bits - 1)) - 1))
    step = 2 << element.mantissa_bits
    twice = bound(once + once)
    lines = maximum(once, difference_or_zero(twice, like(code, kind, step)))
    fourfold = difference_or_zero(twice + twice, like(code, kind, 4 * step))
    return bound(maximum(lines, fourfold))


def _is_negative(element: Element, code: Expr, kind: str) -> Expr:
    return code > like(code, kind, (1 << (element.bits - 1)) - 1)


def _small_float(code: Expr, exponent_bits: int, mantissa_bits: int, nan_from: int | None) -> Expr:
    """int32 codes of a small IEEE-like float -> float32.

    From `nan_from` on, a magnitude is an infinity or NaN: E4M3 has one such, E5M2 those of the top
    exponent.
    """

    def number(value: int) -> Expr:
        return like(code, "int32", value)

    bias = (1 << (exponent_bits - 1)) - 1
    width = exponent_bits + mantissa_bits
    magnitude = bound(code & number((1 << width) - 1))
    moved = bound(magnitude << number(23 - mantissa_bits))
    normal = moved + number((127 - bias) << 23)
    # a leading one put before the mantissa of a subnormal, then taken off again: exact
    smallest = 2.0 ** (1 - bias)
    with_one = real_of(moved + number((128 - bias) << 23))
    subnormal = bits_of(with_one - like(code, "float32", smallest))
    is_subnormal = magnitude < number(1 << mantissa_bits)
    finite = choose(is_subnormal, subnormal, normal)
    if nan_from is not None:
        finite = choose(
            magnitude < number(nan_from), finite, _special(moved, exponent_bits, number)
        )
    sign = (code & number(1 << width)) << number(31 - width)
    return real_of(finite | sign)


def _special(moved: Expr, exponent_bits: int, number: Any) -> Expr:
    """The float32 bits of a magnitude whose exponent is all ones."""
    if exponent_bits == 4:
        return number(NAN_BITS)
    return moved + number((255 - 31) << 23)
