"""What is learned of one x: the input that a group of linears reads, over all rows (tokens) seen.

Rows are split in two: most make up the Hessian that quantizers minimize over, a sample is held back
and judges what they made. Where a batch is one row (the head of a model that takes pictures one by
one), every eighth is of the sample. Crest factors are of a block, max|x| / rms(x) (arXiv
2510.25602, section 4), kurtosis of a row, E[x^4] / E[x^2]^2 (arXiv 2506.19697). First tokens are
counted by themselves: decoders park massive activations there (arXiv 2502.06415)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from lbcompiler.ir.model import Array

EVERY = 8  # of rows that come alone
CREST_BLOCKS = (16, 32)
CREST_BINS_A_UNIT = 10
CREST_EDGES = np.linspace(1.0, 6.0, 5 * CREST_BINS_A_UNIT + 1)  # sqrt(32) = 5.66 is the most
_TINY = 1e-30


@dataclass
class InputStatistics:
    """Arrays only, so that saving is naming them.

    absmax, minimum, maximum, first_absmax, rest_absmax: (K,) float32, the last two over first
    tokens and over all others. hessian: (K, K) float32, the sum of x x^T over counts[1] rows, maybe
    mapped from a file; (0, 0) where it was not asked for. sample: (R, K) float32. crest: (2, 52)
    int64, histograms of blocks of 16 and 32 over CREST_EDGES, those beyond an end outside. counts:
    (4,) int64: rows seen, rows in the Hessian, first tokens, batches. sums: (3,) float64, of the
    rows' kurtosis and of the blocks' crest factors of 16 and of 32.
    """

    absmax: Array
    minimum: Array
    maximum: Array
    first_absmax: Array
    rest_absmax: Array
    hessian: Array
    sample: Array
    crest: Array
    counts: Array
    sums: Array

    @classmethod
    def empty(cls, k: int, hessian: Array | None = None) -> "InputStatistics":
        """hessian: zeros (K, K) to add to; None for statistics without one."""
        zeros = np.zeros(k, np.float32)
        return cls(
            absmax=zeros.copy(),
            minimum=np.full(k, np.inf, np.float32),
            maximum=np.full(k, -np.inf, np.float32),
            first_absmax=zeros.copy(),
            rest_absmax=zeros.copy(),
            hessian=np.zeros((0, 0), np.float32) if hessian is None else hessian,
            sample=np.zeros((0, k), np.float32),
            crest=np.zeros((len(CREST_BLOCKS), len(CREST_EDGES) + 1), np.int64),
            counts=np.zeros(4, np.int64),
            sums=np.zeros(1 + len(CREST_BLOCKS), np.float64),
        )

    def arrays(self) -> dict[str, Array]:
        """By name; `InputStatistics(**arrays)` is the inverse."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def add(self, x: Array, seen: Array | None, held_back: int, draw: np.random.Generator) -> None:
        """One batch x (.., K); `seen` (..) is false where a token is padding. `held_back` rows, at
        positions drawn, go into the sample and not into the Hessian: at most half of the batch, or
        a row that comes alone while the sample is less than an eighth of the rows before it.
        """
        rows = x.reshape(-1, x.shape[-1])
        is_first = _first_tokens(x.shape)
        if seen is not None:
            keep = seen.reshape(-1)
            rows, is_first = rows[keep], is_first[keep]
        if not len(rows):
            self.counts[3] += 1
            return
        magnitude = np.abs(rows)
        np.maximum(self.absmax, magnitude.max(axis=0), out=self.absmax)
        np.minimum(self.minimum, rows.min(axis=0), out=self.minimum)
        np.maximum(self.maximum, rows.max(axis=0), out=self.maximum)
        for which, largest in ((is_first, self.first_absmax), (~is_first, self.rest_absmax)):
            np.maximum(largest, magnitude[which].max(axis=0, initial=0.0), out=largest)
        crest, sums = _shape(rows, magnitude)
        most = len(rows) // 2 if len(rows) > 1 else int(len(self.sample) * EVERY <= self.rows)
        chosen = np.zeros(len(rows), bool)
        chosen[draw.permutation(len(rows))[: min(held_back, most)]] = True
        learned, product = rows[~chosen], None
        if self.hessian.size:
            product = learned.T @ learned
        counts = (len(rows), len(learned), np.count_nonzero(is_first), 1)
        added = {
            "sample": np.concatenate([self.sample, rows[chosen]]),
            "crest": self.crest + crest,
            "sums": self.sums + sums,
            "counts": self.counts + counts,
        }
        try:
            if product is not None:
                np.add(self.hessian, product, out=self.hessian)
        finally:  # Ctrl-C is raised when a call returns: a batch is counted once or not at all
            self.__dict__.update(added)

    def end(self) -> None:
        """No batch follows: where all rows are in the sample (there is one), they are learned from
        as well.
        """
        if self.counts[1] or not len(self.sample):
            return
        if self.hessian.size:
            self.hessian += self.sample.T @ self.sample
        self.counts[1] = len(self.sample)

    @property
    def rows(self) -> int:
        return int(self.counts[0])

    @property
    def batches(self) -> int:
        return int(self.counts[3])

    @property
    def mean_hessian(self) -> Array | None:
        """(K, K) float32, the mean of x x^T; None where there is none."""
        return self.hessian / np.float32(max(1, self.counts[1])) if self.hessian.size else None

    @property
    def kurtosis(self) -> float:
        """Mean over rows; 3 of a Gaussian."""
        return float(self.sums[0] / max(1, self.rows))

    def crest_factor(self, block: int) -> float:
        """Mean over blocks of one of CREST_BLOCKS; NaN where all of them are zero."""
        i = CREST_BLOCKS.index(block)
        count = int(self.crest[i].sum())
        return float(self.sums[1 + i] / count) if count else float("nan")


def _shape(rows: Array, magnitude: Array) -> tuple[Array, Array]:
    """What a batch adds to (crest, sums)."""
    crest = np.zeros((len(CREST_BLOCKS), len(CREST_EDGES) + 1), np.int64)
    sums = np.zeros(1 + len(CREST_BLOCKS), np.float64)
    squares = np.square(rows)
    power = squares.mean(axis=1)
    fourth = np.square(squares, out=squares).mean(axis=1)
    sums[0] = (fourth / np.maximum(np.square(power), _TINY)).sum(dtype=np.float64)
    for i, block in enumerate(CREST_BLOCKS):
        whole = rows.shape[1] // block * block
        blocks = magnitude[:, :whole].reshape(-1, block)
        rms = np.sqrt(np.einsum("ij,ij->i", blocks, blocks) / block)
        factors = (blocks.max(axis=1) / np.maximum(rms, _TINY))[rms > 0]
        bins = ((factors - CREST_EDGES[0]) * CREST_BINS_A_UNIT).astype(np.int32) + 1
        np.clip(bins, 0, len(CREST_EDGES), out=bins)
        crest[i] = np.bincount(bins, minlength=len(CREST_EDGES) + 1)
        sums[1 + i] = factors.sum(dtype=np.float64)
    return crest, sums


def _first_tokens(shape: tuple[int, ...]) -> Array:
    """Which rows of (batch, length, K) begin a sequence; none where there is no length."""
    is_first = np.zeros(shape[:-1], bool)
    if len(shape) == 3:
        is_first[:, 0] = True
    return is_first.reshape(-1)


def statistics_of(arrays: Mapping[str, Array], prefix: str) -> InputStatistics:
    """The inverse of `InputStatistics.arrays`, its names behind `prefix`."""
    return InputStatistics(**{f.name: arrays[prefix + f.name] for f in fields(InputStatistics)})
