import numpy as np
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named
from lbcompiler.ir.smoothing import Folding, Smoothing
from lbcompiler.smoothing import GATE, Rounding, search

K = 96
NVINT4 = Rounding(format_named("nvint4"), format_named("nvint4"))


def folding(*, shifts: bool = False, tied: int = 1) -> Folding:
    return Folding(("l",), np.arange(K) // tied, shifts)


def rows_of(seed: int, *, factor: float = 1, offset: float = 0) -> np.ndarray:
    """(64, K): every 16th channel times `factor`, every 8th moved by `offset`."""
    x = np.random.default_rng(seed).standard_normal((64, K)).astype(np.float32)
    x[:, ::16] *= factor
    x[:, ::8] += offset
    return x


def weights_of(count: int = 2) -> list[np.ndarray]:
    draw = np.random.default_rng(9)
    return [draw.standard_normal((40 + i, K)).astype(np.float32) for i in range(count)]


def error(smoothing: Smoothing | None, x: np.ndarray, weights: list[np.ndarray]) -> float:
    """Spelled out a second time, in float64 and without any of the search's parts."""
    fmt, total = format_named("nvint4"), 0.0
    shift = np.zeros(K) if smoothing is None or smoothing.shift is None else smoothing.shift
    scale = np.ones(K) if smoothing is None else smoothing.scale
    moved = ((x - shift) / scale).astype(np.float32)
    read = fmt.dequantize(fmt.quantize(moved, per_row=True)).astype(np.float64)
    for w in weights:
        rounded = fmt.dequantize(fmt.quantize((w * scale).astype(np.float32))).astype(np.float64)
        y = x.astype(np.float64) @ w.T
        total += np.square(read @ rounded.T + w @ shift - y).sum() / np.square(y).sum()
    return total / len(weights)


@pytest.mark.parametrize("fmt", ["mxint8", "mxint4", "mxfp4", "nvint4", "nvfp4"])
def test_outlier_channels_are_smoothed(fmt: str) -> None:
    rounding = Rounding(format_named(fmt), format_named(fmt))
    found = search(rows_of(0, factor=50), weights_of(), rounding, folding())
    assert found is not None
    outliers = np.arange(K) % 16 == 0
    assert found.scale[outliers].min() > 3 * found.scale[~outliers].max()


def test_what_is_found_helps_on_rows_it_never_saw() -> None:
    weights, unseen = weights_of(), rows_of(7, factor=50)
    found = search(rows_of(0, factor=50), weights, NVINT4, folding())
    assert found is not None
    assert error(found, unseen, weights) < GATE * error(None, unseen, weights)


def test_offsets_are_shifted_away_where_a_shift_can_be_folded() -> None:
    x, weights = rows_of(0, offset=40), weights_of()
    shifted = search(x, weights, NVINT4, folding(shifts=True))
    scaled = search(x, weights, NVINT4, folding())
    assert shifted is not None
    assert shifted.shift is not None
    assert shifted.method.startswith("shift")
    np.testing.assert_allclose(shifted.shift[::8], 40, atol=3)  # of 64 normal numbers each
    assert scaled is None or scaled.shift is None
    unseen = rows_of(7, offset=40)
    assert error(shifted, unseen, weights) < 0.5 * error(scaled, unseen, weights)


def test_channels_that_are_one_number_get_one_scale() -> None:
    found = search(rows_of(0, factor=50), weights_of(), NVINT4, folding(tied=4, shifts=True))
    assert found is not None
    np.testing.assert_array_equal(found.scale, np.repeat(found.scale[::4], 4))
    if found.shift is not None:
        np.testing.assert_array_equal(found.shift, np.repeat(found.shift[::4], 4))


def test_limits_of_more_rows_than_the_sample_are_heeded() -> None:
    x = rows_of(0, factor=50)
    high, low = np.full(K, 60, np.float32), np.full(K, -20, np.float32)
    found = search(x, weights_of(), NVINT4, folding(shifts=True), minimum=low, maximum=high)
    assert found is None or found.shift is None or (found.shift == 20).all()


def test_nothing_is_kept_where_channels_are_alike() -> None:
    draw = np.random.default_rng(2)
    x = draw.choice([-1, 1], (64, K)).astype(np.float32)
    weights = [draw.choice([-1, 1], (40, K)).astype(np.float32)]
    assert search(x, weights, NVINT4, folding()) is None  # every number is exact as it is


@pytest.mark.parametrize("dead", ["channel", "column", "all"])
def test_dead_channels_keep_their_scale(dead: str) -> None:
    x, weights = rows_of(0, factor=50), weights_of(1)
    if dead == "column":
        weights[0][:, 3] = 0
    else:
        x[:, 3 if dead == "channel" else slice(None)] = 0
    found = search(x, weights, NVINT4, folding(shifts=True))
    assert (found is None) == (dead == "all")
    if found is not None and "smoothquant" in found.method:
        assert found.scale[3] == 1


def test_weights_alone() -> None:
    rounding = Rounding(format_named("mxint4"), None)
    found = search(rows_of(0, factor=50), weights_of(), rounding, folding())
    assert found is not None  # a column that large numbers meet is worth a finer scale
    assert found.scale[::16].min() > np.delete(found.scale, np.s_[::16]).max()


def test_nothing_where_nothing_can_be_folded_or_judged() -> None:
    x = rows_of(0, factor=50)
    assert search(x, weights_of(), NVINT4, Folding(("l",), reason="no norm")) is None
    assert search(x[:1], weights_of(), NVINT4, folding()) is None


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf])
def test_a_scale_that_cannot_be_undone_is_an_error(scale: float) -> None:
    with pytest.raises(ConfigError, match="positive and finite"):
        Smoothing(np.array([1, scale], np.float32))


def test_a_shift_of_another_length_is_an_error() -> None:
    with pytest.raises(ConfigError, match="finite shift for each scale"):
        Smoothing(np.ones(4, np.float32), np.zeros(3, np.float32))


def test_the_linear_is_the_same_without_rounding() -> None:
    draw = np.random.default_rng(4)
    x, w = rows_of(1), weights_of(1)[0]
    scale, shift = (draw.uniform(0.1, 10, K).astype(np.float32) for _ in range(2))
    smoothing = Smoothing(scale, shift)
    y = smoothing.activation(x) @ smoothing.weight(w).T + smoothing.bias(w)
    # K products of float32, each rounded a few times, around what the shift adds
    bound = (K + 8) * 2.0**-24 * (np.abs(x) + 2 * np.abs(shift)) @ np.abs(w).T
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= bound).all()
