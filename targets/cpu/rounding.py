"""Rounding of float32 vectors to what a format has, to nearest even: on the bits, or by adding a
constant whose last bit is worth one step.

No product is added to anything here before it is rounded: contraction into an FMA could only change
what is exact anyway.
"""

from lbcompiler.formats import Element
from lbcompiler.targets.cpu.decode import divisor
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    bits_of,
    bound,
    cast,
    fma,
    like,
    maximum,
    minimum,
    real_of,
)

INFINITY_BITS = 0x7F800000
_ROUND = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits
_ROUND_BITS = 0x4B400000


def magnitude_bits(x: Expr) -> Expr:
    """int32 bits of |x|."""
    return bits_of(x) & like(x, "int32", 0x7FFFFFFF)


def to_nearest(x: Expr, mantissa_bits: int, smallest_exponent: int) -> Expr:
    """Non-negative x to the nearest float of so many mantissa bits."""
    binade = bits_of(x) & like(x, "int32", INFINITY_BITS)
    binade = maximum(binade, like(x, "int32", (smallest_exponent + 127) << 23))
    step = bound(real_of(binade + like(x, "int32", (23 - mantissa_bits) << 23)))
    return fma(x, like(x, "float32", 1.0), step) - step  # x + step that TVM does not cancel


def to_integers(element: Element, units: Expr) -> Expr:
    """int32: x in units of its scale -> the code's value times the element's multiplier."""
    if element.is_integer:
        return _nearest_integer(units, int(element.max))
    rounded = _nearest_float(element, units)
    return cast("int32", rounded * like(rounded, "float32", divisor(element)))


def to_values(element: Element, units: Expr) -> Expr:
    """float32: x in units of its scale -> the code's value."""
    if element.is_integer:
        return cast("float32", _nearest_integer(units, int(element.max)))
    return _nearest_float(element, units)


def _nearest_float(element: Element, units: Expr) -> Expr:
    """To the nearest value of a float element, saturated; the sign stays even at zero."""
    bits = bound(bits_of(units))
    magnitude = bound(real_of(bits & like(bits, "int32", 0x7FFFFFFF)))
    rounded = bits_of(to_nearest(magnitude, element.mantissa_bits, element.smallest_exponent))
    limit = bits_of(like(units, "float32", element.max))
    sign = bits & like(bits, "int32", -(1 << 31))
    return bound(real_of(minimum(rounded, limit) | sign))


def _nearest_integer(x: Expr, limit: int) -> Expr:
    """int32 of x to the nearest, within +-limit."""
    rounded = bits_of(x + like(x, "float32", _ROUND)) - like(x, "int32", _ROUND_BITS)
    return minimum(maximum(rounded, like(x, "int32", -limit)), like(x, "int32", limit))
