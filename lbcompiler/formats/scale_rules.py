"""How a block gets its scale: the named rules, in float32 arithmetic that a kernel can repeat.

MX (a scale 2^e, e clamped to [-127, 127]; m is the element's max, a the block's largest |x|):

| rule | e | after |
|---|---|---|
| `floor` | floor(log2 a) - floor(log2 m); may clip the maximum | OCP MX v1.0, 6.3 |
| `rceil` | ceil(log2(a / m)); never clips | arXiv 2510.25602 eq. 9, cuBLAS |
| `even` | as floor, of a rounded (half up) to the element's mantissa first | Quark |
| `mse` | of rceil's e and e - 1 the one with the smaller squared error; rceil's on a tie | |

NV (an E4M3 byte under a float32 tensor scale g, which puts the largest block at E4M3's 448):

| rule | scale | after |
|---|---|---|
| `absmax` | a / m / g | arXiv 2510.25602, ModelOpt |
| `four_over_six` | the better of a / m / g and 1.5 a / m / g; g maps to 256 | arXiv 2512.02010 |
| `sweep` | the best of the E4M3 bytes from 8 below absmax's to 8 above | arXiv 2606.07618 |

A searched rule compares the error of what will be stored: the scale s is rounded first, then s^2
times the sum over the block of (x / scale - code)^2, each times the importance of its column if
there is one, added in halves: each with that half a block further on, then those with the ones a
quarter further on, and so forth. Between equal errors the candidate tried first stays.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats.elements import Codes, Element, Floats
from lbcompiler.formats.scales import (
    E4M3_LARGEST,
    ScaleType,
    decode_scales,
    encode_e4m3,
    encode_exponents,
)

Exponents = NDArray[np.int32]

SMALLEST_TENSOR_SCALE = 2.0**-126  # the smallest normal float32
FOUR_OVER_SIX_LARGEST = 256.0  # 1.5 times it is still below 448
SWEEP = tuple(offset for n in range(1, 9) for offset in (-n, n))  # of the byte; the nearest first


def floor_exponents(maxima: Floats, element: Element) -> Exponents:
    return (maxima.view(np.int32) >> 23) - (127 + element.largest_exponent)


def rceil_exponents(maxima: Floats, element: Element) -> Exponents:
    """The smallest e with max * 2^e >= maximum, in integers: a logarithm of floats is not exact."""
    difference = maxima.view(np.int32) - np.float32(element.max).view(np.int32)
    return -(-difference >> 23)


def even_exponents(maxima: Floats, element: Element) -> Exponents:
    half = np.int32(1 << (22 - element.mantissa_bits))
    return ((maxima.view(np.int32) + half) >> 23) - (127 + element.largest_exponent)


def tensor_scales(maxima: Floats, element: Element, rule: str) -> Floats:
    """g of each tensor (or row) from its largest |x|: float32, never zero; 1 where all is zero."""
    largest = FOUR_OVER_SIX_LARGEST if rule == "four_over_six" else E4M3_LARGEST
    g = np.maximum(maxima / np.float32(element.max * largest), np.float32(SMALLEST_TENSOR_SCALE))
    return np.where(maxima == 0, np.float32(1), g)


@dataclass(frozen=True)
class Blocks:
    """Finite blocks to be scaled: values (B, block), their largest magnitudes (B,), and how much
    each squared error counts in a search, (B, block), if not all the same."""

    values: Floats
    maxima: Floats
    element: Element
    importance: Floats | None = None

    def relative_errors(self, divisor: Floats) -> Floats:
        """Sum over each block of (x / divisor - code)^2, (B,)."""
        scaled = self.values / divisor[:, None]
        scaled -= self.element.round(scaled)
        scaled *= scaled
        if self.importance is not None:
            scaled *= self.importance
        columns: Floats = np.ascontiguousarray(scaled.T)
        while len(columns) > 1:
            half = len(columns) // 2
            columns = columns[:half] + columns[half:]
        total: Floats = columns[0]
        return total


def block_scales(blocks: Blocks, kind: ScaleType, rule: str, g: Floats | None) -> Codes:
    """Scale byte of each block; g is (B,) or (1,) for E4M3, None for E8M0."""
    if kind == "e8m0":
        return _E8M0_RULES[rule](blocks)
    assert g is not None
    return _E4M3_RULES[rule](blocks, g)


def divisors(scales: Codes, kind: ScaleType, g: Floats | None) -> Floats:
    """What a block is divided by: the scale of its byte, for NV times g (one float32 product)."""
    if g is None:
        return decode_scales(scales, kind)
    return decode_scales(scales, kind) * g


def _mse(blocks: Blocks) -> Codes:
    ceiling = encode_exponents(rceil_exponents(blocks.maxima, blocks.element))
    below = np.maximum(ceiling, 1) - np.uint8(1)
    errors = [blocks.relative_errors(decode_scales(s, "e8m0")) for s in (ceiling, below)]
    return np.where(errors[1] < np.float32(4) * errors[0], below, ceiling)


def _absmax(blocks: Blocks, g: Floats) -> Codes:
    return encode_e4m3(blocks.maxima / np.float32(blocks.element.max) / g)


def _best(blocks: Blocks, candidates: list[Codes], g: Floats) -> Codes:
    """The candidate of least squared error for each block; errors are in units of g^2."""
    best, least = candidates[0], np.full(len(blocks.values), np.inf, np.float32)
    for bytes_ in candidates:
        s = decode_scales(bytes_, "e4m3")
        error = s * s * blocks.relative_errors(s * g)
        best = np.where(error < least, bytes_, best)
        least = np.minimum(error, least)
    return best


def _four_over_six(blocks: Blocks, g: Floats) -> Codes:
    six = blocks.maxima / np.float32(blocks.element.max)
    return _best(blocks, [encode_e4m3(six / g), encode_e4m3(six * np.float32(1.5) / g)], g)


def _sweep(blocks: Blocks, g: Floats) -> Codes:
    start = _absmax(blocks, g)
    around = [np.clip(start.astype(np.int16) + n, 1, 126).astype(np.uint8) for n in SWEEP]
    return _best(blocks, [start, *around], g)


def _by_exponent(exponents: Callable[[Floats, Element], Exponents]) -> Callable[[Blocks], Codes]:
    return lambda blocks: encode_exponents(exponents(blocks.maxima, blocks.element))


_E8M0_RULES: dict[str, Callable[[Blocks], Codes]] = {
    "floor": _by_exponent(floor_exponents),
    "rceil": _by_exponent(rceil_exponents),
    "even": _by_exponent(even_exponents),
    "mse": _mse,
}
_E4M3_RULES: dict[str, Callable[[Blocks, Floats], Codes]] = {
    "absmax": _absmax,
    "four_over_six": _four_over_six,
    "sweep": _sweep,
}
RULES: dict[ScaleType, tuple[str, ...]] = {"e8m0": tuple(_E8M0_RULES), "e4m3": tuple(_E4M3_RULES)}
DEFAULT_RULE: dict[ScaleType, str] = {"e8m0": "rceil", "e4m3": "absmax"}
