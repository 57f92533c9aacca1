"""The measures against their definitions, their corners, and that pieces add up to the whole."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lbcompiler import metrics
from lbcompiler.errors import ConfigError
from lbcompiler.metrics import IDENTICAL_DB, Similarity, TokenAgreement, parse_metrics

NAN, INF = math.nan, math.inf


def similarity(ours: object, reference: object) -> Similarity:
    found = Similarity()
    found.add(np.asarray(ours, np.float32), np.asarray(reference, np.float32))
    return found


def test_by_hand() -> None:
    found = similarity([3.0, 4.0, 1.0], [3.0, 4.0, 0.0])
    assert found.qsnr_db == pytest.approx(10 * math.log10(25 / 1))
    assert found.cosine == pytest.approx(25 / (5 * math.sqrt(26)))
    assert found.max_abs == 1.0


@given(
    arrays(np.float32, (3, 7), elements=st.floats(-1e3, 1e3, width=32)),
    arrays(np.float32, (3, 7), elements=st.floats(-1e3, 1e3, width=32)),
)
def test_pieces_add_up(ours: np.ndarray, reference: np.ndarray) -> None:
    whole, parts = similarity(ours, reference), Similarity()
    for y, r in zip(ours, reference, strict=True):
        parts.add(y, r)
    assert parts.qsnr_db == pytest.approx(whole.qsnr_db, rel=1e-12)
    assert parts.cosine == pytest.approx(whole.cosine, rel=1e-12, abs=1e-15)
    assert parts.max_abs == whole.max_abs


def test_a_tensor_larger_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((5, 11)).astype(np.float32)
    ours = reference + rng.standard_normal((5, 11)).astype(np.float32) * np.float32(0.01)
    whole = similarity(ours, reference)
    monkeypatch.setattr(metrics, "PIECE", 8)
    assert similarity(ours, reference).noise == pytest.approx(whole.noise, rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "reference", "qsnr_db", "cosine", "max_abs"),
    [
        pytest.param([1, 2], [1, 2], IDENTICAL_DB, 1, 0, id="identical"),
        pytest.param([0, 0], [0, 0], IDENTICAL_DB, 1, 0, id="both zero"),
        pytest.param([0, 1], [0, 0], -IDENTICAL_DB, 0, 1, id="only the reference is zero"),
        pytest.param([0, 0], [0, 2], 0, 0, 2, id="only ours is zero"),
        pytest.param([-1, -2], [1, 2], 10 * math.log10(5 / 20), -1, 4, id="opposite"),
        pytest.param([1, -INF], [1, -INF], IDENTICAL_DB, 1, 0, id="same infinity"),
        pytest.param([1, NAN], [1, NAN], IDENTICAL_DB, 1, 0, id="same NaN"),
        pytest.param([1, INF], [1, -INF], NAN, NAN, NAN, id="opposite infinities"),
        pytest.param([1, NAN], [1, 1], NAN, NAN, NAN, id="NaN in ours"),
        pytest.param([1, 1], [1, INF], NAN, NAN, NAN, id="infinity in the reference"),
        pytest.param([], [], IDENTICAL_DB, 1, 0, id="empty"),
    ],
)
def test_corners(
    ours: list[float], reference: list[float], qsnr_db: float, cosine: float, max_abs: float
) -> None:
    found = similarity(ours, reference)
    assert found.qsnr_db == pytest.approx(qsnr_db, nan_ok=True)
    assert found.cosine == pytest.approx(cosine, nan_ok=True)
    assert found.max_abs == pytest.approx(max_abs, nan_ok=True)


def test_integers_and_large_values_do_not_overflow() -> None:
    found = Similarity()
    found.add(np.array([2**40, 3], np.int64), np.array([2**40, 1], np.int64))
    found.add(np.array([True]), np.array([False]))
    assert found.noise == 5.0
    assert similarity([3e38], [3.1e38]).qsnr_db == pytest.approx(20 * math.log10(31), abs=1e-4)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(1, 2\)"):
        similarity([1, 2], [[1, 2]])


def tokens(
    ours: np.ndarray, reference: np.ndarray, ids: np.ndarray, mask: np.ndarray | None = None
) -> TokenAgreement:
    found = TokenAgreement()
    found.add(ours, reference, ids, mask)
    return found


def by_definition(logits: np.ndarray, ids: np.ndarray) -> float:
    """Perplexity of one row of tokens, the slow way."""
    losses = []
    for position in range(len(ids) - 1):
        exponentials = np.exp(logits[position].astype(np.float64))
        losses.append(-math.log(exponentials[ids[position + 1]] / exponentials.sum()))
    return math.exp(sum(losses) / len(losses))


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    reference = rng.standard_normal((2, 6, 9)).astype(np.float32)
    ours = reference + rng.standard_normal((2, 6, 9)).astype(np.float32)
    return ours, reference, rng.integers(0, 9, (2, 6))


def test_perplexity_and_kl_by_definition(case: tuple[np.ndarray, ...]) -> None:
    ours, reference, ids = case[0][:1], case[1][:1], case[2][:1]
    found = tokens(ours, reference, ids)
    assert found.perplexity == pytest.approx(by_definition(ours[0], ids[0]))
    assert found.reference_perplexity == pytest.approx(by_definition(reference[0], ids[0]))
    p, q = (np.exp(x[0]) / np.exp(x[0]).sum(-1, keepdims=True) for x in (reference, ours))
    assert found.kl == pytest.approx(float((p * np.log(p / q)).sum(-1).mean()), rel=1e-5)
    assert found.top1 == np.mean(ours.argmax(-1) == reference.argmax(-1))


def test_token_pieces_add_up(case: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = tokens(*case), TokenAgreement()
    monkeypatch.setattr(metrics, "PIECE", 20)
    for row in range(2):
        parts.add(*(array[row : row + 1] for array in case))
    for name in ("kl", "top1", "perplexity", "reference_perplexity"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_masked_tokens_count_nowhere(case: tuple[np.ndarray, ...]) -> None:
    ours, reference, ids = case
    mask = np.ones((2, 6), np.int64)
    mask[:, 4:] = 0
    masked, short = tokens(*case, mask), tokens(ours[:, :4], reference[:, :4], ids[:, :4])
    assert masked.tokens == 8
    assert masked.predictions == 6
    assert masked == short


def test_identical_logits_shifted_by_a_constant(case: tuple[np.ndarray, ...]) -> None:
    _, reference, ids = case
    found = tokens(reference + np.float32(100), reference, ids)
    assert found.kl == pytest.approx(0, abs=1e-6)  # float32 keeps 2^-18 of 100
    assert found.top1 == 1.0


def test_impossible_tokens() -> None:
    """A logit of -inf is probability zero: no term where the reference has it, else infinite KL."""
    ids = np.array([[0, 0]])
    reference = np.array([[[0, -INF, 1], [0, -INF, 1]]], np.float32)
    assert tokens(reference, reference, ids).kl == 0.0
    assert tokens(np.array([[[0, 0, -INF]] * 2], np.float32), reference, ids).kl == INF


def test_one_token_has_no_next() -> None:
    found = tokens(np.ones((1, 1, 4)), np.ones((1, 1, 4)), np.array([[2]]))
    assert math.isnan(found.perplexity)
    assert found.top1 == 1.0
    assert math.isnan(TokenAgreement().kl)


def test_metric_names() -> None:
    assert parse_metrics(" qsnr, kl ") == ("qsnr", "kl")
    with pytest.raises(ConfigError, match="'psnr': choose from qsnr, cosine"):
        parse_metrics("qsnr,psnr")
    with pytest.raises(ConfigError, match="no metric is named"):
        parse_metrics(",")
