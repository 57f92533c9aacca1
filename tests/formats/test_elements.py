"""Elements in layers: every code against the bit layout of the spec, then every tie, then the ends.

The judge here is exact arithmetic on Fractions, not ml_dtypes, whose casts the elements use.
"""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcompiler.formats.elements import E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT6, INT8, Element

patient = settings(max_examples=50, deadline=None)  # a loaded machine is no failure

ELEMENTS = [E2M1, E2M3, E3M2, E4M3, E5M2, INT4, INT6, INT8]
FLOATS = [element for element in ELEMENTS if not element.is_integer]
SPEC_MAX = {  # OCP MX v1.0, tables 1 to 5; arXiv 2510.25602, table 1
    "e2m1": 6, "e2m3": 7.5, "e3m2": 28, "e4m3": 448, "e5m2": 57344,
    "int4": 7, "int6": 31, "int8": 127,
}  # fmt: skip
SPEC_SMALLEST = {
    "e2m1": 0.5, "e2m3": 0.125, "e3m2": 2**-4, "e4m3": 2**-9, "e5m2": 2**-16,
    "int4": 1, "int6": 1, "int8": 1,
}  # fmt: skip


def spec_value(element: Element, code: int) -> float:
    """The value of a code from sign, exponent and mantissa fields, or two's complement."""
    if element.is_integer:
        return float(code - (1 << element.bits) if code >> (element.bits - 1) else code)
    exponent_bits, mantissa_bits = int(element.name[1]), int(element.name[3])
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    bias = 2 ** (exponent_bits - 1) - 1
    if element is E5M2 and exponent == 31:
        return sign * np.inf if mantissa == 0 else np.nan
    if element is E4M3 and exponent == 15 and mantissa == 7:
        return np.nan
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


def written_codes(element: Element) -> list[int]:
    """The codes that `encode` may write, -0 left out, by rising value."""
    codes = [c for c in range(2**element.bits) if abs(spec_value(element, c)) <= element.max]
    zero = {0} if element.is_integer else {0, 1 << (element.bits - 1)}
    rising = sorted((c for c in codes if c not in zero), key=lambda c: spec_value(element, c))
    middle = len(rising) // 2
    return [*rising[:middle], 0, *rising[middle:]]


def encode_one(element: Element, value: float | np.floating) -> int:
    return int(element.encode(np.array([value], np.float32))[0])


def decode_one(element: Element, value: float | np.floating) -> float:
    return float(element.decode(np.array([encode_one(element, value)], np.uint8))[0])


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_every_code_decodes_to_its_value(element: Element) -> None:
    codes = np.arange(2**element.bits, dtype=np.uint8)
    expected = np.array([spec_value(element, int(c)) for c in codes], np.float32)
    values = element.decode(codes)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(
        np.signbit(values[expected == 0]), np.signbit(expected[expected == 0])
    )


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_every_written_code_survives(element: Element) -> None:
    codes = np.array(written_codes(element), np.uint8)
    np.testing.assert_array_equal(element.encode(element.decode(codes)), codes)


@pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
def test_a_negative_zero_keeps_its_sign(element: Element) -> None:
    assert encode_one(element, -0.0) == 1 << (element.bits - 1)
    assert encode_one(element, -1e-30) == 1 << (element.bits - 1)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_facts(element: Element) -> None:
    assert element.max == SPEC_MAX[element.name]
    assert element.smallest == SPEC_SMALLEST[element.name]
    assert 2**element.largest_exponent <= element.max < 2 ** (element.largest_exponent + 1)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_every_tie_goes_to_the_even_code_and_its_neighbours_to_the_nearest(
    element: Element,
) -> None:
    codes = written_codes(element)
    for below, above in pairwise(codes):
        low, high = Fraction(spec_value(element, below)), Fraction(spec_value(element, above))
        tie = np.float32(float((low + high) / 2))
        assert Fraction(float(tie)) == (low + high) / 2  # exact in float32
        even = below if below % 2 == 0 else above
        assert decode_one(element, tie) == spec_value(element, even)
        assert decode_one(element, np.nextafter(tie, np.float32(-np.inf))) == float(low)
        assert decode_one(element, np.nextafter(tie, np.float32(np.inf))) == float(high)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_saturates(element: Element, sign: int) -> None:
    above = [np.nextafter(np.float32(element.max), np.float32(np.inf)), element.max * 1.04]
    for value in [*above, element.max * 2, 465.0 * 2**12, 3e38, np.inf]:
        assert decode_one(element, sign * np.float32(value)) == sign * element.max


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_nan_becomes_zero(element: Element) -> None:
    x = np.array([1, np.nan, -1, -np.nan], np.float32)
    np.testing.assert_array_equal(element.decode(element.encode(x)), [1, 0, -1, 0])


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_subnormal_floats_become_zero(element: Element) -> None:
    tiny = np.array([1, 0x7FFFFF, 0x80000001, 0x807FFFFF], np.uint32).view(np.float32)
    np.testing.assert_array_equal(element.decode(element.encode(tiny)), np.zeros(4))


def random_floats(count: int) -> np.ndarray:
    """Every exponent of float32 alike, and NaN and Inf among them."""
    bits = np.random.default_rng(0).integers(0, 2**32, count, dtype=np.uint32)
    return bits.view(np.float32)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_no_float32_gives_a_nan_inf_or_asymmetric_code(element: Element) -> None:
    decoded = element.decode(element.encode(random_floats(1 << 18)))
    assert (np.abs(decoded) <= element.max).all()


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
def test_round_is_decode_of_encode(element: Element) -> None:
    spread = random_floats(1 << 18)
    near = np.random.default_rng(1).normal(0, element.max / 3, 1 << 18).astype(np.float32)
    small = near * np.float32(element.smallest / element.max)
    codes = element.decode(np.array(written_codes(element), np.uint8))
    ties = (codes[:-1] + codes[1:]) / np.float32(2)
    x = np.concatenate([spread[~np.isnan(spread)], near, small, codes, ties])
    rounded = element.round(x)
    np.testing.assert_array_equal(rounded, element.decode(element.encode(x)))


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda e: e.name)
@patient
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_nearest_value_is_chosen(element: Element, value: float) -> None:
    chosen = abs(Fraction(value) - Fraction(decode_one(element, value)))
    values = (Fraction(spec_value(element, c)) for c in written_codes(element))
    assert chosen == min(abs(Fraction(value) - v) for v in values)


@pytest.mark.parametrize(
    ("element", "multiplier"),
    [
        (INT8, 1),
        (INT6, 1),
        (INT4, 1),
        (E2M1, 2),
        (E2M3, 8),
        (E3M2, None),
        (E4M3, None),
        (E5M2, None),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_integer_multiplier(element: Element, multiplier: int | None) -> None:
    assert element.integer_multiplier == multiplier
    if multiplier is None:
        return
    integers = element.decode(np.array(written_codes(element), np.uint8)) * multiplier
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert np.abs(integers).max() <= 127
