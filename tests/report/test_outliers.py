"""Each kind of outlier in a tensor that was made to have it, and in one that just misses it."""

import numpy as np
import pytest

from lbcompiler.calibration.statistics import InputStatistics
from lbcompiler.report.outliers import (
    CHANNELS,
    MASSIVE,
    MASSIVE_ANYWHERE,
    MASSIVE_FIRST_TOKEN,
    WEIGHT,
    WEIGHTS,
    input_outliers,
    weight_outliers,
)

BATCH, LENGTH, K = 4, 64, 96


def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((BATCH, LENGTH, K)).astype(np.float32)


def found_in(x: np.ndarray) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Kind -> (count, channels)."""
    statistics = InputStatistics.empty(K)
    statistics.add(x, None, 128, np.random.default_rng(1))
    return {o.kind: (o.count, o.channels) for o in input_outliers(statistics)}


def test_a_gaussian_has_none() -> None:
    assert found_in(inputs()) == {}


def test_zeros_have_none() -> None:
    assert found_in(np.zeros((BATCH, LENGTH, K), np.float32)) == {}


def test_massive_first_tokens() -> None:
    x = inputs()
    x[:, 0, 7] = 20 * MASSIVE
    assert found_in(x) == {MASSIVE_FIRST_TOKEN: (1, (7,))}


def test_massive_in_another_token_is_told_apart() -> None:
    x = inputs()
    x[:, 0, 7] = 20 * MASSIVE
    x[2, 30, 7] = -30 * MASSIVE
    assert found_in(x) == {MASSIVE_ANYWHERE: (1, (7,))}


def test_below_a_thousand_times_the_mean_nothing_is_massive() -> None:
    x = inputs()
    x[0, 0, 7] = 0.9 * MASSIVE * np.abs(x).mean()
    assert found_in(x) == {}


def test_outlier_channels_strongest_first() -> None:
    x = inputs()
    x[..., 3] *= 10
    x[..., 50] *= 40
    assert found_in(x) == {CHANNELS: (2, (50, 3))}


@pytest.mark.parametrize(("every", "is_outlier"), [(8, True), (64, False)])
def test_a_channel_counts_where_it_is_far_out_in_six_rows_of_a_hundred(
    every: int, is_outlier: bool
) -> None:
    x = inputs()
    x[:, ::every, 5] = 30
    assert (CHANNELS in found_in(x)) == is_outlier


def test_more_channels_are_counted_than_named() -> None:
    x = inputs()
    x[..., :20] *= 50
    count, channels = found_in(x)[CHANNELS]
    assert count == 20
    assert len(channels) == 8
    assert set(channels) <= set(range(20))


def weight() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((1200, K)).astype(np.float32)


def test_an_outlying_weight_names_its_channel() -> None:
    w = weight()
    w[1100, 41] = 100
    (found,) = weight_outliers(w)
    assert (found.kind, found.count, found.channels) == (WEIGHTS, 1, (41,))
    column = np.abs(w[:, 41].astype(np.float64))
    row = np.abs(w[1100].astype(np.float64))
    expected = max(column.max() / column.mean(), row.max() / row.mean())
    assert found.ratio == pytest.approx(expected, rel=1e-6)  # float32 means


def test_a_column_that_stands_out_of_the_rows_is_named() -> None:
    w = weight()
    w[:, 9] *= 100
    (found,) = weight_outliers(w)
    assert (found.count, found.channels) == (1, (9,))


def test_below_three_times_a_gaussian_no_weight_is_an_outlier() -> None:
    w = weight()
    w[1100, 41] = 0.9 * WEIGHT * np.sqrt(np.pi * np.log(w.size)) * np.abs(w[:, 41]).mean()
    assert weight_outliers(w) == ()


def test_a_zero_weight_has_none() -> None:
    assert weight_outliers(np.zeros((4, K), np.float32)) == ()
