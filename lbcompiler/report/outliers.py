"""Values far above the rest: which kind, how far, and in which channels.

`massive_first_token`, `massive`, of inputs: an |x| is over 1000 times the mean |x|, in first tokens
only, or in others too (arXiv 2502.06415).

`channels`, of inputs: one is over 6 in at least 6 % of the rows (LLM.int8(), arXiv 2208.07339),
in units of the median channel's RMS, which is about 1 behind the norms of that paper.

`weights`: the largest max / mean of |w| within a row or a column is over 3 times what as many
Gaussians have, sqrt(pi ln n). 2502.06415 ranks weights by it and gives no threshold: the 3 is ours.
"""

import math
from dataclasses import dataclass

import numpy as np

from lbcompiler.calibration.statistics import InputStatistics
from lbcompiler.ir.model import Array

MASSIVE = 1000.0  # times the mean magnitude
CHANNEL = 6.0  # times the usual channel's RMS
CHANNEL_SHARE = 0.06  # of the rows
WEIGHT = 3.0  # times what Gaussians would have
NAMED = 8  # channels that are named; the count is of all
ROWS = 1024  # of a weight, worked on at a time

MASSIVE_FIRST_TOKEN, MASSIVE_ANYWHERE = "massive_first_token", "massive"
CHANNELS, WEIGHTS = "channels", "weights"


@dataclass(frozen=True)
class Outliers:
    """ratio: of the greatest to what `kind` compares with. channels: of the input, the greatest
    first, at most 8 of the `count`."""

    kind: str
    ratio: float
    count: int
    channels: tuple[int, ...]


def input_outliers(statistics: InputStatistics) -> tuple[Outliers, ...]:
    """Those of a linear's input."""
    found = (_massive(statistics), _channels(statistics.sample))
    return tuple(outliers for outliers in found if outliers is not None)


def weight_outliers(weight: Array) -> tuple[Outliers, ...]:
    """Those of a weight (N, K)."""
    row, column_max, column_sum = 0.0, np.zeros(weight.shape[1]), np.zeros(weight.shape[1])
    for start in range(0, len(weight), ROWS):
        magnitude = np.abs(weight[start : start + ROWS])
        np.maximum(column_max, magnitude.max(axis=0), out=column_max)
        column_sum += magnitude.sum(axis=0, dtype=np.float64)
        row = max(row, float(_ratio(magnitude.max(axis=1), magnitude.mean(axis=1)).max()))
    columns = _ratio(column_max, column_sum / len(weight))
    ratio = max(row, float(columns.max()))
    limit = WEIGHT * math.sqrt(math.pi * math.log(max(2, weight.size)))
    if ratio <= limit:
        return ()
    # a large weight stands out of its column, of its row, or of both: the columns are the channels
    over = columns > limit
    return (_outliers(WEIGHTS, ratio, column_max, over if over.any() else _largest(column_max)),)


def _massive(statistics: InputStatistics) -> Outliers | None:
    if not statistics.sample.any():
        return None
    mean = float(np.abs(statistics.sample).mean(dtype=np.float64))
    is_massive = statistics.absmax > MASSIVE * mean
    if not is_massive.any():
        return None
    elsewhere = (statistics.rest_absmax > MASSIVE * mean).any()
    kind = MASSIVE_ANYWHERE if elsewhere else MASSIVE_FIRST_TOKEN
    return _outliers(kind, float(statistics.absmax.max()) / mean, statistics.absmax, is_massive)


def _channels(sample: Array) -> Outliers | None:
    if not sample.size:
        return None
    rms = np.sqrt(np.square(sample).mean(axis=0, dtype=np.float64))
    usual = float(np.median(rms)) or float(np.sqrt(np.square(rms).mean()))
    magnitude = np.abs(sample)
    is_outlier = (magnitude > CHANNEL * usual).mean(axis=0) >= CHANNEL_SHARE
    if not is_outlier.any():
        return None
    return _outliers(CHANNELS, float(magnitude[:, is_outlier].max()) / usual, rms, is_outlier)


def _outliers(kind: str, ratio: float, sizes: Array, which: Array) -> Outliers:
    order = np.argsort(-np.where(which, sizes, -1.0), kind="stable")
    count = int(np.count_nonzero(which))
    return Outliers(kind, ratio, count, tuple(int(i) for i in order[: min(count, NAMED)]))


def _largest(sizes: Array) -> Array:
    which: Array = np.arange(len(sizes)) == int(sizes.argmax())
    return which


def _ratio(largest: Array, mean: Array) -> Array:
    """1 where all is zero."""
    ratio: Array = np.divide(largest, mean, out=np.ones(len(mean)), where=mean > 0)
    return ratio
