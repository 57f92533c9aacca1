"""`lbc.hadamard` where no quantize has taken it: two sums of up to 16 products in place of many.

A Hadamard of size a * b is one of a over one of b; each output of a step is a sum of a (or b)
elements with signs that its index gives, in a fixed order.
"""

from typing import Any

from tvm import te, tirx

from lbcompiler.ir.rotation import Rotation, rotation_of
from lbcompiler.targets.cpu.legalization import Builder

RADIX = 16  # of one step

Expr = Any


def legalize_hadamard(builder: Builder, call: Any) -> Any:
    """A chain of elementwise stages over x (..., K)."""
    rotation = rotation_of(call.attrs)
    return builder.call_te(
        lambda x: _rotated(x, rotation), call.args[0], primfunc_name_hint=rotation.name
    )


def _rotated(x: Any, rotation: Rotation) -> Any:
    held = _signed(x, rotation) if rotation.seed is not None else x
    distance = 1
    while distance < rotation.size:
        radix = min(RADIX, rotation.size // distance)
        distance *= radix
        factor = float(rotation.factor) if distance == rotation.size else 1.0
        held = _step(held, distance // radix, radix, factor)
    return held


def _signed(x: Any, rotation: Rotation) -> Any:
    """x with the rotation's signs, which are bits of words of 32."""
    words = []
    for start in range(0, rotation.size, 32):
        signs = rotation.signs[start : start + 32]
        words.append(sum(1 << i for i, sign in enumerate(signs) if sign < 0))

    def value(*at: Expr) -> Expr:
        index = tirx.floormod(at[-1], rotation.size)
        word: Expr = tirx.const(words[0], "uint32")
        for i, held in enumerate(words[1:], 1):
            word = tirx.Select(index >= 32 * i, tirx.const(held, "uint32"), word)
        bit = tirx.Cast("uint32", tirx.floormod(index, 32))
        negative = ((word >> bit) & tirx.const(1, "uint32")) != tirx.const(0, "uint32")
        return tirx.Select(negative, -x(*at), x(*at))

    return te.compute(x.shape, value, name="signed")


def _parity(place: Expr, mask: int) -> Expr:
    """1 where an odd number of the mask's bits are set in `place`."""
    bits = [(place >> i) & 1 for i in range(mask.bit_length()) if mask >> i & 1]
    total = bits[0]
    for bit in bits[1:]:
        total = total ^ bit
    return total


def _step(x: Any, distance: int, radix: int, factor: float) -> Any:
    """Butterflies of `radix` elements that lie `distance` apart."""

    def value(*at: Expr) -> Expr:
        *lead, k = at
        place = tirx.floormod(tirx.floordiv(k, distance), radix)
        base = k - place * distance
        total: Expr = None
        for other in range(radix):
            term = x(*lead, base + other * distance)
            if other:
                term = tirx.Select(_parity(place, other) == 1, -term, term)
            total = term if total is None else total + term
        return total * tirx.const(factor, "float32")

    return te.compute(x.shape, value, name="butterflies")
