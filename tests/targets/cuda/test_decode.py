"""Every code under every scale byte, through the device functions of the kernels."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS, decode_scales
from tests.emulator.build import emulate
from tests.targets.cuda.decoding import decoding, every_pair, exact, operands
from tests.targets.cuda.reference import from_bfloat16, to_bfloat16

each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
SMALLEST = 2.0**-133  # bfloat16 above zero
CORNERS = {  # E8M0 bytes below which code * scale may be no bfloat16: 2^(byte - 127)
    "mxfp8": 3,
    "mxfp8_e5m2": 10,
}


@each_format
def test_every_product_is_a_bfloat16(fmt) -> None:
    """But for the two corners that decode.py names: overflow, as in float32, and underflow."""
    codes, scales = every_pair(fmt)
    wanted = exact(fmt, codes, scales)
    kept = np.isfinite(wanted)
    with np.errstate(over="ignore"):
        rounded = from_bfloat16(to_bfloat16(wanted.astype(np.float32))).astype(np.float64)
    is_exact = rounded == wanted
    overflows = np.abs(wanted) >= 2.0**128
    underflows = scales < CORNERS.get(fmt.name, 0)
    assert (is_exact | overflows | underflows)[kept].all()
    assert (np.isinf(rounded) == overflows)[kept].all()
    small = kept & underflows
    assert (np.abs(rounded[small] - wanted[small]) <= SMALLEST / 2).all()
    if fmt.name in CORNERS:  # the corner is no wider than it is said to be
        assert not is_exact[kept & (scales == CORNERS[fmt.name] - 1)].all()


@pytest.fixture(scope="module")
def decoders():
    return emulate({n: decoding(f, len(every_pair(f)[0])) for n, f in FORMATS.items()})


@each_format
@pytest.mark.parametrize("flush", [False, True], ids=["", "flush"])
def test_kernels_decode_every_pair(decoders, fmt, flush) -> None:
    """Also where float32 subnormals are flushed: decoding uses none."""
    codes, scales = every_pair(fmt)
    y = np.zeros(len(codes), np.uint32)
    decoders(fmt.name, *operands(fmt), y, flush=flush)
    np.testing.assert_array_equal(y & 0xFFFF, y >> 16)
    values = fmt.element.values[codes]
    known = np.isfinite(values)  # `canonical` leaves no code of NaN and infinity
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = exact(fmt, codes, scales)
        bits = to_bfloat16(wanted.astype(np.float32))
    is_nan = np.isnan(decode_scales(scales, fmt.scale))
    got = (y & 0xFFFF).astype(np.uint16)
    np.testing.assert_array_equal(got[known & ~is_nan], bits[known & ~is_nan])
    assert np.isnan(from_bfloat16(got[is_nan & known])).all()
