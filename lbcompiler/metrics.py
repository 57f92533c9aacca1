"""How close two tensors are, summed piece by piece in float64: no whole output need be kept.

A NaN or an infinity that stands in both tensors at one place agrees and is left out of the sums;
one in only one of them makes every measure undefined (NaN): a broken kernel never looks good.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import ConfigError

Array = NDArray[Any]

METRICS = ("qsnr", "cosine", "max_abs", "kl", "top1", "perplexity")
IDENTICAL_DB = 1000.0  # stands for infinity, which JSON has not; float64 sums never reach it
PIECE = 1 << 20  # elements worked on at a time: 8 MiB for each float64 temporary


def parse_metrics(text: str) -> tuple[str, ...]:
    """`"qsnr,kl"` -> ("qsnr", "kl"). Raises ConfigError."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        wrong = f"there is no metric {unknown[0]!r}" if unknown else "no metric is named"
        raise ConfigError(f"{wrong}: choose from {', '.join(METRICS)}, joined by commas")
    return names


@dataclass
class Similarity:
    """Of a tensor to its reference: QSNR, cosine and greatest absolute error."""

    signal: float = 0.0  # sum of reference^2
    noise: float = 0.0  # sum of (reference - ours)^2
    power: float = 0.0  # sum of ours^2
    dot: float = 0.0
    worst: float = 0.0
    is_broken: bool = False

    def add(self, ours: Array, reference: Array) -> None:
        """Both of one shape, any real dtype. Raises ValueError when the shapes differ."""
        if ours.shape != reference.shape:
            raise ValueError(f"shapes differ: {ours.shape} and {reference.shape}")
        flat, flat_reference = ours.reshape(-1), reference.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = slice(start, start + PIECE)
            self._add(flat[piece].astype(np.float64), flat_reference[piece].astype(np.float64))

    def _add(self, y: Array, r: Array) -> None:
        finite = np.isfinite(y) & np.isfinite(r)
        if not finite.all():
            agrees = (y == r) | (np.isnan(y) & np.isnan(r))
            self.is_broken |= bool((~finite & ~agrees).any())
            y, r = y[finite], r[finite]
        error = r - y
        self.signal += float(r @ r)
        self.power += float(y @ y)
        self.dot += float(y @ r)
        self.noise += float(error @ error)
        self.worst = max(self.worst, float(np.abs(error).max(initial=0.0)))

    @property
    def qsnr_db(self) -> float:
        """10 log10(signal / noise), in dB; +-IDENTICAL_DB where there is no noise or no signal."""
        if self.is_broken:
            return math.nan
        if self.noise == 0.0:
            return IDENTICAL_DB
        if self.signal == 0.0:
            return -IDENTICAL_DB
        return 10.0 * (math.log10(self.signal) - math.log10(self.noise))

    @property
    def cosine(self) -> float:
        """1.0 of two zero tensors, 0.0 where only one is zero."""
        if self.is_broken:
            return math.nan
        length = math.sqrt(self.signal) * math.sqrt(self.power)
        if length == 0.0:
            return float(self.signal == self.power)
        return min(1.0, max(-1.0, self.dot / length))

    @property
    def max_abs(self) -> float:
        return math.nan if self.is_broken else self.worst


@dataclass
class TokenAgreement:
    """Of logits with the reference's, and how well each predicts the next token."""

    kl_sum: float = 0.0
    matches: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    reference_loss_sum: float = 0.0
    predictions: int = 0

    def add(self, ours: Array, reference: Array, ids: Array, mask: Array | None = None) -> None:
        """Logits (batch, length, V); ids and mask (batch, length): nothing counts where it is 0."""
        seen = np.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        has_next = np.zeros(ids.shape, bool)
        has_next[:, :-1] = seen[:, :-1] & seen[:, 1:]
        following = np.roll(ids, -1, axis=1)[seen]
        predicts = has_next[seen]
        for rows, y, r in _row_pieces(ours, reference, seen):
            self._add(y, r, following[rows], predicts[rows])

    def _add(self, ours: Array, reference: Array, following: Array, predicts: Array) -> None:
        log_y, log_r = log_softmax(ours), log_softmax(reference)
        probability = np.exp(log_r)
        with np.errstate(invalid="ignore"):
            terms = np.where(probability == 0.0, 0.0, probability * (log_r - log_y))
        self.kl_sum += float(terms.sum())
        self.matches += int((ours.argmax(axis=-1) == reference.argmax(axis=-1)).sum())
        self.tokens += len(ours)
        which, token = np.flatnonzero(predicts), following[predicts]
        self.loss_sum -= float(log_y[which, token].sum())
        self.reference_loss_sum -= float(log_r[which, token].sum())
        self.predictions += len(which)

    @property
    def kl(self) -> float:
        """Mean KL(reference || ours) of a token, in nats."""
        return self.kl_sum / self.tokens if self.tokens else math.nan

    @property
    def top1(self) -> float:
        """Share of tokens where both put the same token first, 0..1."""
        return self.matches / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        return self._perplexity(self.loss_sum)

    @property
    def reference_perplexity(self) -> float:
        return self._perplexity(self.reference_loss_sum)

    def _perplexity(self, loss: float) -> float:
        if not self.predictions:
            return math.nan
        mean = loss / self.predictions
        return math.exp(mean) if mean < 700 else math.inf  # exp overflows from 710 on


def log_softmax(logits: Array) -> Array:
    """Over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def _row_pieces(ours: Array, reference: Array, seen: Array) -> Iterator[tuple[slice, Array, Array]]:
    """The seen rows of two (batch, length, V) tensors, a few at a time, and which they are."""
    batch, position = np.nonzero(seen)
    step = max(1, PIECE // max(1, ours.shape[-1]))
    for start in range(0, len(batch), step):
        rows = slice(start, start + step)
        where = batch[rows], position[rows]
        yield rows, ours[where], reference[where]
