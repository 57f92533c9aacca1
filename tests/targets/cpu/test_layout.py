import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.layout import (
    pack_codes,
    pack_columns,
    padded,
    plane_shapes,
    unpack_codes,
    unpack_columns,
)

ELEMENTS = {fmt.element.name: fmt.element for fmt in FORMATS.values()}
each_element = pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)


def random_codes(seed: int, n: int, k: int, bits: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, (n, k)).astype(np.uint8)


@given(
    st.sampled_from(list(ELEMENTS)),
    st.sampled_from([1, 4]),
    st.sampled_from([16, 32]),
    st.integers(1, 70),
    st.integers(1, 130),
)
def test_unpacking_is_the_inverse_of_packing(name, group, block, n, k) -> None:
    element = ELEMENTS[name]
    codes = random_codes(n * 1000 + k, n, k, element.bits)
    planes = pack_codes(codes, element, block, group)
    shapes = plane_shapes(n, padded(k, block), element.bits, group)
    assert tuple(plane.shape for plane in planes) == shapes
    np.testing.assert_array_equal(unpack_codes(planes, n, k, element, group), codes)


@each_element
def test_codes_take_just_their_bits(element) -> None:
    planes = pack_codes(random_codes(0, 32, 64, element.bits), element, 32, 4)
    assert sum(plane.nbytes for plane in planes) * 8 == 32 * 64 * element.bits


@each_element
@pytest.mark.parametrize("group", [1, 4])
def test_padding_is_the_code_of_zero(element, group) -> None:
    planes = pack_codes(np.zeros((17, 33), np.uint8), element, 32, group)
    np.testing.assert_array_equal(
        unpack_codes(planes, 32, 64, element, group), np.zeros((32, 64), np.uint8)
    )


def test_eight_bits_lie_column_by_column_within_a_group() -> None:
    codes = random_codes(1, 16, 32, 8)
    (plane,) = pack_codes(codes, ELEMENTS["e4m3"], 32, 4)
    np.testing.assert_array_equal(plane[0, 3].reshape(16, 4), codes[:, 12:16])


def test_integers_are_stored_with_their_sign_bit_flipped() -> None:
    (plane,) = pack_codes(np.full((1, 1), 0xFF, np.uint8), ELEMENTS["int8"], 32, 1)
    assert plane[0, 0, 0] == 127  # -1 + 128


def test_the_low_nibble_is_the_earlier_group() -> None:
    codes = random_codes(2, 16, 16, 4)
    (plane,) = pack_codes(codes, ELEMENTS["e2m1"], 16, 4)
    np.testing.assert_array_equal(plane[0, 1].reshape(16, 4) & 15, codes[:, 8:12])
    np.testing.assert_array_equal(plane[0, 1].reshape(16, 4) >> 4, codes[:, 12:16])


def test_six_bits_lie_as_nibbles_and_pairs() -> None:
    codes = random_codes(3, 16, 32, 6)
    nibbles, pairs = pack_codes(codes, ELEMENTS["e2m3"], 32, 1)
    np.testing.assert_array_equal(nibbles[0, 3], codes[:, 6] & 15 | (codes[:, 7] & 15) << 4)
    upper = sum((codes[:, 4 + i] >> 4) << 2 * i for i in range(4))
    np.testing.assert_array_equal(pairs[0, 1], upper)


@given(st.integers(1, 70), st.integers(1, 9))
def test_scales_and_float_weights_come_back(n, k) -> None:
    scales = random_codes(n, n, k, 8)
    np.testing.assert_array_equal(unpack_columns(pack_columns(scales), n), scales)
    np.testing.assert_array_equal(
        unpack_columns(pack_columns(scales.astype(np.float32)), n), scales
    )
