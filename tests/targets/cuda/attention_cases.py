"""Attention in many shapes, and what it must give."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cuda.attention_parts import parts_shape

Array = NDArray[Any]
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
    "eight heads of one, a mask of heads": (1, 4, 40, 8, 1, 16, 8, True, "HQK"),
    "too many rows for a block": (1, 5, 40, 8, 1, 16, 8, True, None),
    "eleven heads of one": (1, 1, 40, 11, 1, 16, 8, True, None),
    "more keys than a head has numbers": (1, 35, 150, 1, 1, 128, 128, True, None),
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
