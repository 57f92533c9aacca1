import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcompiler.ir.outliers import Split, arranged, outlier_channels


def test_channels_beyond_the_threshold_are_outliers_the_largest_first() -> None:
    absmax = np.full(1000, 3, np.float32)
    absmax[[10, 500, 999]] = 7, 100, 6
    assert outlier_channels(absmax, typical=1.0) == (500, 10)  # 6 is not above 6
    assert outlier_channels(absmax, typical=2.0) == (500,)
    assert outlier_channels(absmax, typical=0.9) == (500, 10, 999)


@pytest.mark.parametrize(("k", "most"), [(64, 1), (1000, 10)])
def test_no_more_than_a_share_of_the_channels(k: int, most: int) -> None:
    assert outlier_channels(np.full(k, 9, np.float32), typical=1.0) == tuple(range(most))


def test_dead_channels_are_no_outliers() -> None:
    assert outlier_channels(np.zeros(64, np.float32), typical=0.0) == ()


@pytest.mark.parametrize(
    ("k", "channels", "reorders", "taken"),
    [
        (128, (40,), False, ((32, 64),)),
        (128, (40, 70), False, ((32, 96),)),
        (128, (5, 70), False, ((0, 32), (64, 96))),
        (128, (5, 70), True, ((96, 128),)),
        (144, (143,), False, ((128, 144),)),  # a short last block
        (144, (5, 70), True, ((128, 144),)),
        (144, (5, 143), True, ((128, 144),)),
        (128, (5, 40, 120), True, ((96, 128),)),
    ],
)
def test_whole_blocks_are_taken(
    k: int, channels: tuple[int, ...], reorders: bool, taken: tuple[tuple[int, int], ...]
) -> None:
    found = arranged("l", k, Split(channels, "mxint8"), reorders=reorders)
    assert found.taken == taken


def test_a_longer_block_keeps_a_rotation_apart() -> None:
    found = arranged("l", 256, Split((40,), "mxint8", block=128), reorders=True)
    assert found.taken == ((0, 128),)


@given(
    st.integers(2, 300).flatmap(
        lambda k: st.tuples(st.just(k), st.sets(st.integers(0, k - 1), min_size=1, max_size=3))
    ),
    st.booleans(),
)
def test_both_products_make_the_whole(drawn: tuple[int, set[int]], reorders: bool) -> None:
    k, channels = drawn
    blocks = len({channel // 16 for channel in channels})
    if blocks == -(-k // 16):
        return  # nothing would be left: an error, tested with the pass
    found = arranged("l", k, Split(tuple(channels), "mxint8", block=16), reorders=reorders)
    draw = np.random.default_rng(k)
    x, w = (draw.integers(-8, 9, (n, k)).astype(np.float32) for n in (3, 5))  # sums are exact
    ordered = x[:, found.order]
    second = np.concatenate([ordered[:, start:end] for start, end in found.taken], axis=1)
    np.testing.assert_array_equal(ordered @ found.rest(w).T + second @ found.outliers(w).T, x @ w.T)
    assert sorted(found.order) == list(range(k))
    places = np.concatenate([np.arange(start, end) for start, end in found.taken])
    assert channels <= set(found.order[places])
    assert found.count == len(places) <= 16 * blocks
