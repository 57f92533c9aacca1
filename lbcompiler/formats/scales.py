"""The two scale types, one byte a block: E8M0, a power of two, and E4M3, used without its sign."""

from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats.elements import Codes, Floats

ScaleType = Literal["e8m0", "e4m3"]

E8M0_BIAS = 127
E4M3_SMALLEST = 2.0**-9
E4M3_LARGEST = 448.0
NAN_BYTE: dict[ScaleType, int] = {"e8m0": 0xFF, "e4m3": 0x7F}

_BYTES = np.arange(256, dtype=np.uint8)
_VALUES: dict[ScaleType, Floats] = {
    "e8m0": np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan)),
    "e4m3": _BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32),
}


def decode_scales(scales: Codes, kind: ScaleType) -> Floats:
    """float32 of each byte: 2^(b - 127), 0xFF NaN (e8m0); signed, 0x7F and 0xFF NaN (e4m3)."""
    return np.take(_VALUES[kind], scales)


def encode_exponents(exponents: NDArray[Any]) -> Codes:
    """E8M0 of 2^e, e clamped to [-127, 127]: an exponent beyond saturates, it is not NaN."""
    return np.asarray(np.clip(exponents, -E8M0_BIAS, 127) + E8M0_BIAS, np.uint8)


def encode_e4m3(scales: Floats) -> Codes:
    """E4M3 of scales, ties to even, clamped to [2^-9, 448]: neither zero nor NaN comes out."""
    clamped = np.clip(scales, np.float32(E4M3_SMALLEST), np.float32(E4M3_LARGEST))
    return clamped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
