"""Rotations against their matrices: exactly where sums are exact, else to the bound of sums."""

import numpy as np
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.ir.rotation import CHUNK, Rotation

SIZES = (2, 8, 16, 32, 64, 128, 512)


def matrix(rotation: Rotation) -> np.ndarray:
    """(size, size) of x R sqrt(size) = x @ matrix; Sylvester's H[i, j] = (-1)^popcount(i & j)."""
    index = np.arange(rotation.size)
    parity = np.array([[(i & j).bit_count() % 2 for j in index.tolist()] for i in index.tolist()])
    return rotation.signs[:, None] * np.where(parity, -1.0, 1.0)


def butterflies(x: np.ndarray, rotation: Rotation) -> np.ndarray:
    """The contract, number by number, for one block."""
    y, distance = (x * rotation.signs).astype(np.float32), 1
    while distance < rotation.size:
        for i in range(rotation.size):
            if not i & distance:
                a, b = y[i], y[i + distance]
                y[i], y[i + distance] = a + b, a - b
        distance *= 2
    return y * rotation.factor


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("size", SIZES)
def test_a_block_is_multiplied_by_the_matrix(size: int, seed: int | None) -> None:
    rotation = Rotation(size, seed)
    x = np.random.default_rng(size).integers(-50, 51, (3, 2 * size)).astype(np.float32)
    exact = x.reshape(3, 2, size).astype(np.float64) @ matrix(rotation)
    wanted = exact.astype(np.float32) * rotation.factor  # sums of integers are exact
    np.testing.assert_array_equal(rotation.apply(x), wanted.reshape(3, 2 * size))


@pytest.mark.parametrize("seed", [None, 11])
@pytest.mark.parametrize("size", SIZES)
def test_sums_are_in_the_order_of_the_contract(size: int, seed: int | None) -> None:
    rotation = Rotation(size, seed)
    x = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    expected = np.stack([butterflies(row, rotation) for row in x])
    np.testing.assert_array_equal(rotation.apply(x), expected)


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_gives_x_back(size: int, seed: int | None) -> None:
    rotation = Rotation(size, seed)
    x = np.random.default_rng(size).standard_normal((4, 2 * size)).astype(np.float32)
    back = rotation.inverse(rotation.apply(x))
    # each of the 2 log2(size) sums on a path rounds by 2^-24 of what no rotation can make larger
    # than the norm of the block; the factor's own rounding comes twice, and that of its products
    sums = 2 * np.log2(size) + 4
    norms = np.linalg.norm(x.reshape(4, 2, size), axis=2)
    bound = np.repeat(norms, size, axis=1) * sums * 2.0**-24
    assert (np.abs(back - x) <= bound).all()
    if seed is None:
        np.testing.assert_array_equal(rotation.inverse(x), rotation.apply(x))


def test_a_size_that_is_a_power_of_four_gives_integers_back_exactly() -> None:
    rotation = Rotation(64, 5)  # its factor is a power of two
    x = np.random.default_rng(0).integers(-99, 100, (2, 128)).astype(np.float32)
    np.testing.assert_array_equal(rotation.inverse(rotation.apply(x)), x)


def test_rows_beyond_one_chunk_are_like_those_within() -> None:
    rotation = Rotation(32)
    x = np.random.default_rng(0).standard_normal((CHUNK // 64 + 3, 96)).astype(np.float32)
    whole = rotation.apply(x)
    np.testing.assert_array_equal(whole[-2:], rotation.apply(x[-2:]))
    assert rotation.apply(x[:0]).shape == (0, 96)


def test_an_outlier_is_spread_over_its_block_alone() -> None:
    x = np.zeros((1, 64), np.float32)
    x[0, 37] = 32
    y = Rotation(32).apply(x)
    assert not y[0, :32].any()
    np.testing.assert_array_equal(np.abs(y[0, 32:]), np.full(32, 32 * Rotation(32).factor))


def test_nan_and_infinity_reach_their_block_alone() -> None:
    x = np.ones((3, 32), np.float32)
    x[0, 3], x[1, 20], x[2, 0], x[2, 1] = np.nan, np.inf, np.inf, -np.inf
    is_finite = np.isfinite(Rotation(16).apply(x)).reshape(3, 2, 16)
    wanted = np.array([[False, True], [True, False], [False, True]])
    np.testing.assert_array_equal(is_finite, np.repeat(wanted[..., None], 16, 2))


def test_signs_are_those_of_the_seed_on_every_machine() -> None:
    assert Rotation(16).signs.tolist() == [1] * 16
    known = "--+-+++-+-+-++-+"
    assert "".join("+" if s > 0 else "-" for s in Rotation(16, 7).signs) == known
    assert Rotation(128, 7).signs[:16].tolist() == Rotation(16, 7).signs.tolist()
    assert not np.array_equal(Rotation(32, 1).signs, Rotation(32, 2).signs)


@pytest.mark.parametrize("size", [0, 1, 3, 48, -2])
def test_a_size_is_a_power_of_two(size: int) -> None:
    with pytest.raises(ConfigError, match=str(size)):
        Rotation(size)


def test_what_cannot_be_rotated_is_said() -> None:
    with pytest.raises(ConfigError, match=r"seed.*-1"):
        Rotation(16, -1)
    with pytest.raises(ConfigError, match=r"32.*\(2, 48\)"):
        Rotation(32).apply(np.zeros((2, 48), np.float32))
    with pytest.raises(ConfigError, match=r"\(\)"):
        Rotation(32).apply(np.float32(1))
