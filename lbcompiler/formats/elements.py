"""Element types: what one code of a block means, and how a float becomes a code.

The casts of `ml_dtypes` round to nearest even, but they turn an E4M3 above 464 into NaN, an E5M2
into Inf, and a NaN into -0 of the small types: so a value is saturated, and a NaN made zero, before
the cast. Integers are plain two's complement, symmetric: the most negative code is read but never
written (arXiv 2510.25602, section 4; the 2^-6 that OCP implies in MXINT8 is a matter of `packing`).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]

MAX_INTEGER = 127  # of a code times `integer_multiplier`: what the int8 dot products of CPUs take


@dataclass(frozen=True)
class Element:
    """One element type; codes are uint8 whose low `bits` bits are used.

    `max` is the largest value a code is written for. A float has a sign, `exponent_bits` and
    `mantissa_bits`, with subnormals; an integer has no exponent, and the bits after its leading one
    are its mantissa.
    """

    name: str
    bits: int
    max: float
    exponent_bits: int
    mantissa_bits: int
    dtype: type[np.generic] | None = None  # the cast of ml_dtypes; None for an integer

    @property
    def is_integer(self) -> bool:
        return self.dtype is None

    @property
    def smallest(self) -> float:
        """The smallest value above zero."""
        if self.is_integer:
            return 1.0
        return float(2.0 ** (self.smallest_exponent - self.mantissa_bits))

    @property
    def smallest_exponent(self) -> int:
        """log2 of the smallest normal value."""
        return 0 if self.is_integer else 2 - 2 ** (self.exponent_bits - 1)

    @property
    def largest_exponent(self) -> int:
        """floor(log2(max))."""
        return int(np.frexp(self.max)[1]) - 1

    @property
    def integer_multiplier(self) -> int | None:
        """The m for which decode(codes) * m are integers that an int8 holds; None if none is."""
        multiplier = 1 / self.smallest
        return int(multiplier) if self.max * multiplier <= MAX_INTEGER else None

    @cached_property
    def values(self) -> Floats:
        """The value of every code, (2**bits,) float32."""
        codes = np.arange(2**self.bits, dtype=np.uint8)
        if self.dtype is not None:
            return codes.view(self.dtype).astype(np.float32)
        sign = 1 << (self.bits - 1)
        return ((codes.astype(np.int32) ^ sign) - sign).astype(np.float32)

    def encode(self, x: NDArray[Any]) -> Codes:
        """Nearest code of each float32, ties to even, saturated to +-max; of a NaN, zero."""
        saturated = np.clip(x, np.float32(-self.max), np.float32(self.max))
        if np.isnan(saturated).any():
            saturated = np.where(np.isnan(saturated), np.float32(0), saturated)
        if self.dtype is not None:
            return np.asarray(saturated.astype(self.dtype)).view(np.uint8)
        codes: Codes = np.rint(saturated).astype(np.int8).view(np.uint8)
        codes &= np.uint8(2**self.bits - 1)
        return codes

    def decode(self, codes: Codes) -> Floats:
        """float32 of each code: also of NaN and Inf codes and of the most negative integer."""
        return np.take(self.values, codes)

    def round(self, x: Floats) -> Floats:
        """decode(encode(x)) of an x without NaN, but five times as fast: searches need that."""
        saturated = np.clip(x, np.float32(-self.max), np.float32(self.max))
        if self.is_integer:
            return np.rint(saturated, out=saturated)
        magnitude = np.abs(saturated)
        # |x| + c - c rounds at the last bit of c, which is 2^(23 - mantissa bits) above x's binade
        binade = magnitude.view(np.int32) & np.int32(0x7F800000)
        np.maximum(binade, np.int32((self.smallest_exponent + 127) << 23), out=binade)
        binade += np.int32((23 - self.mantissa_bits) << 23)
        magnitude += binade.view(np.float32)
        magnitude -= binade.view(np.float32)
        return np.copysign(magnitude, saturated, out=magnitude)


def _float(name: str, dtype: Any) -> Element:
    info = ml_dtypes.finfo(dtype)
    return Element(name, int(info.bits), float(info.max), int(info.nexp), int(info.nmant), dtype)


def _integer(bits: int) -> Element:
    return Element(f"int{bits}", bits, 2.0 ** (bits - 1) - 1, 0, bits - 2)


E2M1 = _float("e2m1", ml_dtypes.float4_e2m1fn)
E2M3 = _float("e2m3", ml_dtypes.float6_e2m3fn)
E3M2 = _float("e3m2", ml_dtypes.float6_e3m2fn)
E4M3 = _float("e4m3", ml_dtypes.float8_e4m3fn)
E5M2 = _float("e5m2", ml_dtypes.float8_e5m2)
INT4 = _integer(4)
INT6 = _integer(6)
INT8 = _integer(8)
