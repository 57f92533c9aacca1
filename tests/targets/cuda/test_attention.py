import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cuda.attention_fused import LONGEST, attention_kernel, fits
from lbcompiler.targets.cuda.attention_parts import MOST, parts_shape
from tests.emulator.build import Emulated, cuda_text, emulate

Array = NDArray[Any]
SEEDS = range(3)
LOWEST = np.float32(-1e9)

# A score is a sum of up to 128 products of normal numbers over the root of their count, a value a
# mean of normal numbers with weights of a relative error of a score's absolute one: 128 2^-24 in
# all, and a few units in the last place for exp and division.
TOLERANCE = 136 * 2**-24

CASES = {  # batch, queries, keys, heads, key heads, depth, value depth, causal, mask
    "grouped heads": (2, 3, 7, 4, 2, 8, 8, False, None),
    "causal, tiles with tails": (1, 40, 70, 2, 1, 64, 64, True, None),
    "odd depths, a mask of keys": (1, 33, 33, 2, 2, 21, 12, False, "BK"),
    "one query of many keys": (1, 1, 50, 2, 2, 80, 128, True, None),
    "three queries of many more keys": (2, 3, 530, 2, 1, 72, 40, True, "K"),
    "a mask of everything": (2, 34, 33, 2, 1, 16, 16, False, "BHQK"),
}


def described(case: tuple[Any, ...], few: bool | None = None) -> Attention:
    _, _, _, heads, key_heads, depth, value_depth, causal, mask = case
    parts = Heads(heads), Heads(key_heads), Heads(key_heads)
    return Attention(*parts, depth, value_depth, depth**-0.5, causal, mask, few)


def inputs(case: tuple[Any, ...]) -> Iterator[Array]:
    batch, queries, keys, heads, key_heads, depth, value_depth, _, mask = case
    seed = np.random.default_rng(0)
    yield seed.standard_normal((batch, queries, heads, depth)).astype(np.float32)
    yield seed.standard_normal((batch, keys, key_heads, depth)).astype(np.float32)
    yield seed.standard_normal((batch, keys, key_heads, value_depth)).astype(np.float32)
    if mask is not None:
        extents = dict(zip("BHQK", (batch, heads, queries, keys), strict=True))
        shape = [extents[axis] if axis in mask else 1 for axis in "BHQK"]
        yield np.where(seed.random(shape) < 0.3, LOWEST, np.float32(0))


def expected(case: tuple[Any, ...], q: Array, k: Array, v: Array, *mask: Array) -> Array:
    _, queries, keys, heads, key_heads, depth, _, causal, _ = case
    k, v = (np.repeat(part, heads // key_heads, axis=2).astype(np.float64) for part in (k, v))
    scores = np.einsum("bihd,bjhd->bhij", q, k) * depth**-0.5 + (mask[0] if mask else 0)
    if causal:
        seen = np.arange(keys)[None] <= np.arange(queries)[:, None] + (keys - queries)
        scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhij,bjhd->bihd", weights, v)


def output(case: tuple[Any, ...]) -> Array:
    batch, queries, _, heads, _, _, value_depth, *_ = case
    return np.full((batch, queries, heads, value_depth), np.nan, np.float32)


def scratch(case: tuple[Any, ...], few: bool | None = None) -> list[Array]:
    """What a kernel writes behind its output."""
    if few is False:
        return []
    return [np.full(parts_shape(described(case), case[0]), np.nan, np.float32)]


@pytest.mark.parametrize("few", [None, False])
@pytest.mark.parametrize("name", CASES)
def test_the_same_as_softmax_between_two_products(name: str, few: bool | None) -> None:
    case = CASES[name]
    given, out = list(inputs(case)), output(case)
    kernel = emulate({"attention": attention_kernel(described(case, few))})
    for seed in SEEDS:
        kernel("attention", *given, out, *scratch(case, few), seed=seed)
        np.testing.assert_allclose(out, expected(case, *given), rtol=0, atol=4 * TOLERANCE)


def test_parts_of_the_keys_give_the_same_bits_in_any_order() -> None:
    case = CASES["three queries of many more keys"]
    given, (parts,) = list(inputs(case)), scratch(case)
    kernel, outs = emulate({"attention": attention_kernel(described(case))}), []
    for seed in SEEDS:
        outs.append(output(case))
        kernel("attention", *given, outs[-1], parts, seed=seed)
        np.testing.assert_array_equal(outs[-1], outs[0])
    tiles, size = -(-530 // 16), 2
    used = np.isfinite(parts.reshape(MOST, 2, *parts.shape[1:])[:, :, :, 0]).all(axis=(1, 2, 3))
    assert used.tolist() == [part * size < tiles for part in range(MOST)]


def test_a_part_whose_keys_are_all_masked_counts_nothing() -> None:
    case = (1, 1, 96, 1, 1, 16, 16, False, "K")
    given, out = list(inputs(case)), output(case)
    given[-1] = np.zeros((1, 1, 1, 96), np.float32)
    given[-1][..., 32:64] = -np.inf
    kernel = emulate({"attention": attention_kernel(described(case))})
    kernel("attention", *given, out, *scratch(case))
    np.testing.assert_allclose(out, expected(case, *given), rtol=0, atol=4 * TOLERANCE)
    given[-1][:] = -np.inf
    kernel("attention", *given, out, *scratch(case))
    assert np.isnan(out).all()


def test_heads_within_a_larger_tensor_in_another_order() -> None:
    """q, k and v are heads 0..1, 2 and 3 of one tensor (batch, heads, positions, depth)."""
    whole = np.random.default_rng(1).standard_normal((1, 4, 9, 16)).astype(np.float32)
    parts = [Heads(count, "BHSD", first, 4) for count, first in ((2, 0), (1, 2), (1, 3))]
    what = Attention(*parts, 16, 16, 0.25)  # few is False
    case = (1, 9, 9, 2, 1, 16, 16, False, None)
    out = output(case)
    emulate({"attention": attention_kernel(what)})("attention", whole, whole, whole, out)
    q, k, v = (whole[:, a:b].transpose(0, 2, 1, 3) for a, b in ((0, 2), (2, 3), (3, 4)))
    np.testing.assert_allclose(out, expected(case, q, k, v), rtol=0, atol=4 * TOLERANCE)


def test_a_query_that_sees_nothing_is_nan() -> None:
    case = (1, 3, 5, 1, 1, 8, 8, False, "QK")
    given, out = list(inputs(case)), output(case)
    given[-1] = np.zeros((1, 1, 3, 5), np.float32)
    given[-1][0, 0, 1] = -np.inf
    kernel = emulate({"attention": attention_kernel(described(case))})
    kernel("attention", *given, out, *scratch(case))
    assert np.isnan(out[0, 1]).all()
    assert np.isfinite(out[0, [0, 2]]).all()


@pytest.mark.parametrize("barrier", [0, 1])
def test_no_barrier_is_idle(barrier: int) -> None:
    case = (1, 40, 100, 1, 1, 16, 16, False, None)
    given, wanted = list(inputs(case)), expected(case, *inputs(case))
    text = cuda_text({"attention": attention_kernel(described(case, few=False))})
    start = text.index("__global__ void")
    calls = [match.span() for match in re.finditer(r"\n\s*tvm_\w*cta_sync\(\);", text[start:])]
    assert len(calls) == 2
    first, last = (start + at for at in calls[barrier])
    text = text[:first] + text[last:]
    kernel, wrong = Emulated(text), 0
    for seed in range(20):
        out = output(case)
        kernel("attention", *given, out, seed=seed)
        wrong += not np.allclose(out, wanted, rtol=0, atol=4 * TOLERANCE)
    assert wrong


def test_heads_that_are_too_long() -> None:
    assert fits(described(CASES["one query of many keys"]))
    assert not fits(described((1, 1, 1, 1, 1, LONGEST + 1, 8, False, None)))
