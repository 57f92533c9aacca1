"""Every scale byte of both types, and the ends of their ranges."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcompiler.formats import decode_scales
from lbcompiler.formats.scales import encode_e4m3, encode_exponents

patient = settings(max_examples=50, deadline=None)  # a loaded machine is no failure

BYTES = np.arange(256, dtype=np.uint8)


def test_every_e8m0_byte() -> None:
    values = decode_scales(BYTES, "e8m0")
    np.testing.assert_array_equal(values[:255], [2.0 ** (b - 127) for b in range(255)])
    assert np.isnan(values[255])
    np.testing.assert_array_equal(values, BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))


def test_every_e4m3_byte() -> None:
    values = decode_scales(BYTES, "e4m3")
    for byte in range(0x7F):
        exponent, mantissa = byte >> 3, byte & 7
        expected = (8 + mantissa) / 8 * 2.0 ** (exponent - 7) if exponent else mantissa * 2.0**-9
        assert values[byte] == expected
        assert values[byte | 0x80] == -expected
    assert np.isnan(values[[0x7F, 0xFF]]).all()


def test_every_exponent_and_beyond() -> None:
    exponents = np.arange(-300, 300)
    expected = [min(max(e, -127), 127) + 127 for e in exponents]
    np.testing.assert_array_equal(encode_exponents(exponents), expected)


def test_every_e4m3_scale_survives() -> None:
    positive = BYTES[1:0x7F]
    np.testing.assert_array_equal(encode_e4m3(decode_scales(positive, "e4m3")), positive)


def test_every_e4m3_tie_goes_to_the_even_byte() -> None:
    values = decode_scales(BYTES[1:0x7F], "e4m3")
    ties = (values[:-1] + values[1:]) / np.float32(2)
    lower = BYTES[1:0x7E]
    np.testing.assert_array_equal(encode_e4m3(ties), lower + lower % 2)
    np.testing.assert_array_equal(encode_e4m3(np.nextafter(ties, np.float32(0))), lower)
    np.testing.assert_array_equal(encode_e4m3(np.nextafter(ties, np.float32(999))), lower + 1)


@pytest.mark.parametrize(
    ("scale", "byte"),
    [
        pytest.param(0.0, 0x01, id="zero is clamped to 2^-9"),
        pytest.param(1e-40, 0x01, id="subnormal float32"),
        pytest.param(448.0, 0x7E, id="the largest"),
        pytest.param(465.0, 0x7E, id="where ml_dtypes turns to NaN"),
        pytest.param(np.inf, 0x7E, id="Inf"),
    ],
)
def test_e4m3_scales_are_clamped(scale: float, byte: int) -> None:
    assert encode_e4m3(np.array([scale], np.float32)) == byte


@patient
@given(st.floats(2**-9, 448, width=32))
def test_e4m3_relative_error(scale: float) -> None:
    stored = decode_scales(encode_e4m3(np.array([scale], np.float32)), "e4m3")[0]
    # half of the last of 3 mantissa bits; below 2^-6 half of the subnormal step
    assert abs(float(stored) - scale) <= max(scale * 2**-4, 2**-10)
