"""The attention kernel beside float64, within what its arithmetic allows."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcompiler.targets.cpu.attention import attention
from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cpu.isa import ISAS, Isa, detect
from lbcompiler.targets.cpu.threads import set_threads
from tests.targets.cpu.reference import WITHOUT_PRODUCTS, Array, call, compiled

UNIT = 2.0**-24  # half a unit in the last place of 1
LOWEST = np.finfo(np.float32).min
each_isa = pytest.mark.parametrize("isa", WITHOUT_PRODUCTS, ids=lambda isa: isa.name)


def heads(count: int, key_heads: int = 0, depth: int = 32, **more: Any) -> Attention:
    shared = Heads(key_heads or count)
    return Attention(Heads(count), shared, shared, depth, depth, depth**-0.5, **more)


BEHIND = Heads(3, "BHSD")
PLAIN = heads(2)
CAUSAL = heads(6, 2, causal=True)
KINDS = {
    "plain": PLAIN,
    "causal, grouped": CAUSAL,
    "heads before positions": replace(PLAIN, q=BEHIND, k=BEHIND, v=BEHIND),
    "positions first": replace(PLAIN, k=Heads(2, "SBHD"), v=Heads(2, "SBHD")),
    "a stack": Attention(Heads(2, first=0, total=6), Heads(2, "BHSD", 2, 6), Heads(2), 15, 40, 0.3),
    "a mask of keys": heads(2, mask="BK"),
    "a mask of all": replace(CAUSAL, mask="BHQK", depth=16, value_depth=16),
    "a mask of queries": heads(1, depth=3, mask="Q"),
    "few": replace(CAUSAL, few=True),
    "few, masked": replace(heads(5, 1, 24, mask="HQK"), few=True),
    "few, a stack": Attention(Heads(2, first=1, total=6), Heads(1), Heads(1), 5, 20, 0.3, few=True),
    "few or not": replace(CAUSAL, few=None, mask="B"),
}


@cache
def kernel(what: Attention, isa: Isa) -> Any:
    return compiled(isa, attention=attention(what, isa))["attention"]


def operands(what: Attention, batch: int, queries: int, keys: int, seed: int = 0) -> list[Array]:
    """q, k, v[, mask]: some scores far above the others, a mask of small and lowest numbers."""
    rng = np.random.default_rng(seed)
    shapes = [
        what.q.shape(batch, queries, what.depth),
        what.k.shape(batch, keys, what.depth),
        what.v.shape(batch, keys, what.value_depth),
    ]
    found = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    found[0] *= rng.choice([0.1, 1, 6], found[0].shape[:-1])[..., None].astype(np.float32)
    if what.mask is not None:
        extents = {"B": batch, "H": what.q.count, "Q": queries, "K": keys}
        shape = [extent if axis in what.mask else 1 for axis, extent in extents.items()]
        small = rng.standard_normal(shape).astype(np.float32)
        found.append(np.where(rng.random(shape) < 0.3, LOWEST, small).astype(np.float32))
    return found


def chosen(part: Heads, x: Array) -> Array:
    """The heads that are meant, as (batch, head, position, number) in float64."""
    x = x.transpose([part.layout.index(axis) for axis in "BHSD"])
    return x[:, part.first : part.first + part.count].astype(np.float64)


def reference(what: Attention, inputs: list[Array]) -> tuple[Array, Array]:
    """(the attention, how far a result may be off), (batch, query, head, number).

    A score is a chain of depth FMAs of a scaled number, and a sum with the mask; a weight has the
    error of its score twice (its own, and in the total), that of the subtraction, and a few units
    for each exp and rescaling; the sums over keys add one rounding each.
    """
    q, k, v = (chosen(part, x) for part, x in zip((what.q, what.k, what.v), inputs, strict=False))
    k, v = k.repeat(what.group, 1), v.repeat(what.group, 1)
    scores, sizes = (f(q) @ f(k).swapaxes(2, 3) * what.scale for f in (np.asarray, np.abs))
    if what.mask is not None:
        with np.errstate(over="ignore"):  # rounded to float32, in which the lowest swallows all
            scores = (scores + inputs[3]).clip(LOWEST)
    queries, keys = scores.shape[2:]
    if what.causal:
        seen = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
        scores = np.where(seen, scores, -np.inf)
    with np.errstate(all="ignore"):
        below = scores - scores.max(-1, keepdims=True)
        weights = np.exp(below)
        weights /= weights.sum(-1, keepdims=True)
    counts = weights > 2.0**-126
    largest = np.where(counts, np.abs(scores), 0).max(-1, keepdims=True)
    off = UNIT * (2 * (what.depth + 2) * sizes + 4 * largest + 2 * keys + 8 * (keys / 64 + 2))
    bound = (np.where(counts, weights * (off + 1e-38), 0) @ np.abs(v)) + 1e-37
    bound += np.where(counts, 0, 2.0**-125) @ np.abs(v)
    return (weights @ v).swapaxes(1, 2), bound.swapaxes(1, 2)


def run(what: Attention, isa: Isa, inputs: list[Array]) -> Array:
    batch, queries = (inputs[0].shape[what.q.layout.index(axis)] for axis in "BS")
    shape = (batch, queries, what.q.count, what.value_depth)
    return call(kernel(what, isa), inputs, (shape, "float32"))[0]


def check(what: Attention, isa: Isa, inputs: list[Array]) -> None:
    expected, bound = reference(what, inputs)
    error = np.abs(run(what, isa, inputs) - expected)
    assert (error <= bound).all(), (error / bound).max()


@each_isa
@pytest.mark.parametrize("what", KINDS.values(), ids=KINDS)
def test_within_the_bound_of_its_arithmetic(what: Attention, isa: Isa) -> None:
    for queries, keys in ((1, 1), (3, 5), (33, 33), (16, 130), (40, 300), (1, 515)):
        check(what, isa, operands(what, 2, queries, keys))


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(list(KINDS)),
    st.integers(1, 3),
    st.integers(1, 80),
    st.integers(0, 280),
    st.integers(0, 2**32 - 1),
)
def test_any_lengths(kind: str, batch: int, queries: int, more: int, seed: int) -> None:
    what = KINDS[kind]
    keys = queries + more if what.causal else 1 + more
    check(what, detect(), operands(what, batch, queries, keys, seed))


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("depth", [1, 7, 8, 64, 80, 256])
def test_any_depth_of_a_head(depth: int, few: bool) -> None:
    what = heads(1, depth=depth, few=few)
    check(what, detect(), operands(what, 1, 20, 40))


@pytest.mark.parametrize("group", [3, 4, 7, 9])
def test_any_number_of_heads_that_share_one(group: int) -> None:
    what = heads(2 * group, 2, 16, few=True)
    check(what, detect(), operands(what, 2, 2, 50))


@pytest.mark.parametrize("what", KINDS.values(), ids=KINDS)
def test_the_same_bits_on_every_instruction_set_and_number_of_threads(what: Attention) -> None:
    inputs = operands(what, 2, 45, 150)
    expected = run(what, detect(), inputs)
    for isa in WITHOUT_PRODUCTS:
        np.testing.assert_array_equal(run(what, isa, inputs), expected)
    try:
        set_threads(1)
        np.testing.assert_array_equal(run(what, detect(), inputs), expected)
    finally:
        set_threads(None)


def test_a_row_does_not_depend_on_what_else_is_in_the_batch() -> None:
    inputs = operands(CAUSAL, 3, 40, 40)
    alone = [x[1:2] for x in inputs]
    expected = run(CAUSAL, detect(), inputs)[1:2]
    np.testing.assert_array_equal(run(CAUSAL, detect(), alone), expected)


@each_isa
@pytest.mark.parametrize("blocked", [130, 200])  # beyond the first block of keys, or all
@pytest.mark.parametrize("few", [False, True])
def test_minus_infinity_bars_and_a_row_of_it_is_nan(isa: Isa, few: bool, blocked: int) -> None:
    what = heads(2, mask="BK", few=few)
    q, k, v, _ = operands(what, 2, 20, 200)
    mask = np.zeros((2, 1, 1, 200), np.float32)
    mask[1, ..., :blocked] = -np.inf
    y = run(what, isa, [q, k, v, mask])
    assert np.isfinite(y[0]).all()
    if blocked == 200:
        assert np.isnan(y[1]).all()
        return
    seen = run(what, isa, [q[1:], k[1:, blocked:], v[1:, blocked:], mask[1:, ..., blocked:]])
    np.testing.assert_allclose(y[1:], seen, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("few", [False, True])
def test_a_row_that_is_barred_everywhere_by_the_lowest_number_takes_the_mean(few: bool) -> None:
    what = heads(2, mask="BK", few=few)
    q, k, v, _ = operands(what, 1, 20, 200)
    y = run(what, detect(), [q, k, v, np.full((1, 1, 1, 200), LOWEST)])
    mean = v.astype(np.float64).mean(1, keepdims=True)
    assert (np.abs(y - mean) <= 200 * UNIT * np.abs(v).mean(1, keepdims=True)).all()


@each_isa
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("few", [False, True])
def test_nan_and_infinity_stay_in_their_rows(isa: Isa, few: bool, bad: float) -> None:
    q, k, v = operands(PLAIN, 1, 40, 40)
    q[0, 7, 1, 3] = bad
    y = run(replace(PLAIN, few=few), isa, [q, k, v])
    assert np.isnan(y[0, 7, 1]).all()
    assert np.isfinite(np.delete(y, 7, axis=1)).all()
    assert np.isfinite(y[0, 7, 0]).all()


def test_keys_later_than_a_tile_are_not_read() -> None:
    q, k, v = operands(CAUSAL, 1, 40, 40)
    expected = run(CAUSAL, detect(), [q, k, v])[:, :33]
    k[0, 33:], v[0, 33:] = np.nan, np.nan
    np.testing.assert_array_equal(run(CAUSAL, detect(), [q, k, v])[:, :32], expected[:, :32])


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_every_instruction_set_has_a_kernel(isa: Isa) -> None:
    attention(PLAIN, isa)
