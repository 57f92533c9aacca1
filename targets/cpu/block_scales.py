"""The scales of several blocks at once, each in lanes of its own, by the rules of
`formats.scale_rules`: those that need no search, and the one that chooses between two scales.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import tirx

from lbcompiler.formats import BlockFormat, Element
from lbcompiler.formats.scale_rules import FOUR_OVER_SIX_LARGEST
from lbcompiler.formats.scales import E4M3_LARGEST
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
RULES = {"e8m0": ("floor", "rceil", "even"), "e4m3": ("absmax", "four_over_six")}
LARGEST = {"absmax": E4M3_LARGEST, "four_over_six": FOUR_OVER_SIX_LARGEST}  # of a row's scales

Errors = Callable[["Scales"], Expr]  # sum of squares of a block's (x / scale - code), in its lanes


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


def scales_of(
    fmt: BlockFormat, rule: str, maxima: Expr, row_scale: Expr | None, errors: Errors
) -> Scales:
    """From the bits of each block's largest |x|, int32 lanes, and the row's tensor scale; `errors`
    is asked by rules that choose.
    """
    is_finite = maxima < _whole(INFINITY_BITS, maxima)
    finite = bound(choose(is_finite, maxima, _whole(0, maxima)))
    keep = bound(choose(finite > _whole(0, finite), _whole(-1, finite), _whole(0, finite)))
    if row_scale is None:
        return _power_scales(fmt.element, rule, finite, is_finite, keep)
    ratio = bound(real_of(finite) / like(finite, "float32", fmt.element.max))
    if rule == "absmax":
        return _e4m3_scales(ratio, is_finite, keep, row_scale)
    four = ratio * like(ratio, "float32", 1.5)
    return _better(
        _e4m3_scales(ratio, is_finite, keep, row_scale),
        _e4m3_scales(four, is_finite, keep, row_scale),
        errors,
    )


def _better(first: Scales, second: Scales, errors: Errors) -> Scales:
    """The scale of each block under which its squared error is less, the first where it is not."""
    costs = [bound(s.value * s.value * errors(s)) for s in (first, second)]
    is_less = costs[1] < costs[0]  # never of a block without a scale, which has NaN
    value, by = (
        bound(choose(is_less, getattr(second, name), getattr(first, name)))
        for name in ("value", "by")
    )
    return Scales(value, first.keep, by, first.divides)


def _power_scales(element: Element, rule: str, maxima: Expr, is_finite: Expr, keep: Expr) -> Scales:
    exponent = _exponent(maxima, element, rule)
    exponent = minimum(maximum(exponent, _whole(-127, maxima)), _whole(127, maxima))
    exponent = bound(exponent & keep)  # a block of zeros: any scale does, and 1 is plain
    value = choose(is_finite, _power_bits(exponent), _whole(NAN_BITS, maxima))
    inverse = real_of(_power_bits(_whole(0, maxima) - exponent))
    kept = choose(is_finite, exponent, _whole(NOT_PLAIN, maxima))
    return Scales(bound(real_of(value)), keep, bound(inverse), False, bound(kept))


def _e4m3_scales(ratio: Expr, is_finite: Expr, keep: Expr, row_scale: Expr) -> Scales:
    """ratio: the scale that each block would have, as float32."""
    g = tirx.Broadcast(row_scale, 16)
    ratio = bound(ratio / g)
    least, most = (bits_of(like(ratio, "float32", value)) for value in (2.0**-9, E4M3_LARGEST))
    ratio = bound(real_of(minimum(maximum(bits_of(ratio), least), most)))
    rounded = bound(to_nearest(ratio, mantissa_bits=3, smallest_exponent=-6))
    value = choose(is_finite, bits_of(rounded), _whole(NAN_BITS, rounded))
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
