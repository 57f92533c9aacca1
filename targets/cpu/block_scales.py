"""The scales of several blocks at once, each in lanes of its own, by the rules of
`formats.scale_rules` that need no search.
"""

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from lbcompiler.formats import BlockFormat, Element
from lbcompiler.targets.cpu.decode import NAN_BITS
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    bits_of,
    bound,
    choose,
    like,
    maximum,
    minimum,
    real_of,
    spread,
)
from lbcompiler.targets.cpu.rounding import INFINITY_BITS, to_nearest

NOT_PLAIN = 1 << 10
RULES = {"e8m0": ("floor", "rceil", "even"), "e4m3": ("absmax",)}


@dataclass(frozen=True)
class Scales:
    """float32 `value`s, NaN for a block that has one; there, and for zeros, `keep` is 0, else -1.

    x times (`divides`: over) `by` is x in units of the scale. `exponent` is that of a power of two,
    NOT_PLAIN for NaN.
    """

    value: Expr
    keep: Expr
    by: Expr
    divides: bool
    exponent: Expr | None = None

    def units(self, x: Expr, lane: int) -> Expr:
        """A vector of the block in a lane, in units of its scale; zeros, without sign, for NaN."""
        kept = real_of(bits_of(x) & spread(self.keep, lane))
        by = spread(self.by, lane)
        return bound(kept / by if self.divides else kept * by)

    def is_unusual(self, limit: int, divided: int = 1) -> Expr:
        """The lanes whose scale, a power of two over `divided`, has an exponent above +- limit."""
        exponent = bound(self.exponent - like(self.exponent, "int32", int(np.log2(divided))))
        distance = maximum(exponent, like(exponent, "int32", 0) - exponent)
        return distance > like(exponent, "int32", limit)


def scales_of(fmt: BlockFormat, rule: str, maxima: Expr, row_scale: Expr | None) -> Scales:
    """From the bits of each block's largest |x|, int32 lanes, and the row's tensor scale."""
    is_finite = maxima < _whole(INFINITY_BITS, maxima)
    finite = bound(choose(is_finite, maxima, _whole(0, maxima)))
    keep = bound(choose(finite > _whole(0, finite), _whole(-1, finite), _whole(0, finite)))
    if row_scale is None:
        return _power_scales(fmt.element, rule, finite, is_finite, keep)
    return _e4m3_scales(fmt.element, finite, is_finite, keep, row_scale)


def _power_scales(element: Element, rule: str, maxima: Expr, is_finite: Expr, keep: Expr) -> Scales:
    exponent = _exponent(maxima, element, rule)
    exponent = minimum(maximum(exponent, _whole(-127, maxima)), _whole(127, maxima))
    exponent = bound(exponent & keep)  # a block of zeros: any scale does, and 1 is plain
    value = choose(is_finite, _power_bits(exponent), _whole(NAN_BITS, maxima))
    inverse = real_of(_power_bits(_whole(0, maxima) - exponent))
    kept = choose(is_finite, exponent, _whole(NOT_PLAIN, maxima))
    return Scales(bound(real_of(value)), keep, bound(inverse), False, bound(kept))


def _e4m3_scales(
    element: Element, maxima: Expr, is_finite: Expr, keep: Expr, row_scale: Expr
) -> Scales:
    g = tirx.Broadcast(row_scale, 16)
    ratio = bound(real_of(maxima) / like(maxima, "float32", element.max) / g)
    least, most = (bits_of(like(maxima, "float32", value)) for value in (2.0**-9, 448.0))
    ratio = bound(real_of(minimum(maximum(bits_of(ratio), least), most)))
    rounded = bound(to_nearest(ratio, mantissa_bits=3, smallest_exponent=-6))
    value = choose(is_finite, bits_of(rounded), _whole(NAN_BITS, maxima))
    return Scales(bound(real_of(value)), keep, bound(rounded * g), True)


def _whole(value: int, x: Expr) -> Expr:
    return like(x, "int32", value)


def _exponent(amax: Expr, element: Element, rule: str) -> Expr:
    """The block's exponent, from the bits of its largest |x|."""
    if rule == "rceil":
        limit = int(np.float32(element.max).view(np.int32))
        return (amax + _whole((1 << 23) - 1 - limit, amax)) >> _whole(23, amax)
    carry = 1 << (22 - element.mantissa_bits) if rule == "even" else 0
    bias = _whole(127 + element.largest_exponent, amax)
    return ((amax + _whole(carry, amax)) >> _whole(23, amax)) - bias


def _power_bits(exponent: Expr) -> Expr:
    """The float32 bits of 2^exponent, in [-127, 127]: the least is a subnormal."""
    shifted = (exponent + _whole(127, exponent)) << _whole(23, exponent)
    return maximum(shifted, _whole(1 << 22, exponent))
