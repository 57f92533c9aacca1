"""Smoothings searched: candidates from what the channels reach, judged by what linears compute.

SmoothQuant (arXiv 2211.10438)           s_j = max|x_j|^a / max|w_j|^(1 - a), a from 0.3 to 0.8
Outlier Suppression+ (arXiv 2304.09145)  s_j = max(1, max x_j / t, -min x_j / t), t on a grid

and before either the latter's shift, z_j = (max x_j + min x_j) / 2, where one can be folded.

A candidate's error is the mean over the linears of ||Y - Y^||^2 / ||Y||^2, Y^ computed from rounded
x' and rounded W'. It is chosen on half of the rows, coarse grid first, on a part of the outputs
(they are independent of one another); the other half says whether it is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats import BlockFormat
from lbcompiler.formats.elements import Floats
from lbcompiler.ir.smoothing import Folding, Indices, Smoothing

GATE = 0.98  # of the error without, on rows that did not choose: what must be reached to be kept
ALPHAS, ALPHA_STEP = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), 0.05  # the step beside the best of them
THRESHOLDS = 10  # from the largest channel down to the middle one, in equal ratios
OUTPUTS = 256  # of each linear while choosing; four times as many to judge
TINY = 1e-12  # of the largest channel: below it one is dead and keeps its scale


@dataclass(frozen=True)
class Rounding:
    """How a group's linears are to be quantized; `act_fmt` None: weights only. Rules None: the
    formats' own.
    """

    fmt: BlockFormat
    act_fmt: BlockFormat | None
    rule: str | None = None
    act_rule: str | None = None

    def weight(self, values: Floats) -> Floats:
        return self.fmt.rounded(values, self.rule)

    def activation(self, x: Floats) -> Floats:
        if self.act_fmt is None:
            return x
        return self.act_fmt.rounded(x, self.act_rule, per_row=True)


def search(
    rows: Floats,
    weights: Sequence[Floats],
    rounding: Rounding,
    allowed: Folding,
    minimum: Floats | None = None,
    maximum: Floats | None = None,
) -> Smoothing | None:
    """The best smoothing of a group; None where none is worth it, or nothing can be folded.

    rows (R, K) float32, samples of what the linears read; weights (N, K) float32 of each. minimum,
    maximum (K,): of all that was ever seen, where that is known; else of the rows."""
    if allowed.rows is None or len(rows) < 2:
        return None
    low, high = _limits(rows, minimum, maximum, allowed.rows)
    chosen, judged = (
        _Trial(part, [_some(w, count) for w in weights], rounding)
        for part, count in ((rows[0::2], OUTPUTS), (rows[1::2], 4 * OUTPUTS))
    )
    largest = np.max([np.abs(w).max(axis=0, initial=0) for w in weights], axis=0)
    largest = _tied(largest, allowed.rows)
    middle: Floats = (high + low) * np.float32(0.5)
    shifts = [None, middle] if allowed.shifts else [None]
    families = [
        family
        for shift in shifts
        for family in (
            _smoothquant(low, high, shift, largest),
            _outlier_suppression(low, high, shift),
        )
    ]
    best = min((family.best(chosen) for family in families), key=chosen.error)
    return best if judged.error(best) < GATE * judged.error(None) else None


class _Trial:
    """Rows and weights that candidates are measured on."""

    def __init__(self, rows: Floats, weights: Sequence[Floats], rounding: Rounding) -> None:
        self.rows, self.weights, self.rounding = rows, weights, rounding
        self.outputs = [rows @ w.T for w in weights]
        self._known: dict[Smoothing | None, float] = {}

    def error(self, smoothing: Smoothing | None) -> float:
        if smoothing not in self._known:
            self._known[smoothing] = self._measured(smoothing)
        return self._known[smoothing]

    def _measured(self, smoothing: Smoothing | None) -> float:
        x = self.rows if smoothing is None else smoothing.activation(self.rows)
        x, errors = self.rounding.activation(x), []
        for weight, y in zip(self.weights, self.outputs, strict=True):
            smoothed = weight if smoothing is None else smoothing.weight(weight)
            offset = np.float32(0) if smoothing is None else smoothing.bias(weight)
            noise = np.square(x @ self.rounding.weight(smoothed).T + offset - y)
            errors.append(noise.sum(dtype=np.float64) / max(_power(y), np.finfo(np.float64).tiny))
        return float(np.mean(errors))


@dataclass(frozen=True)
class _Family:
    """Candidates with one number each: those of the coarse grid, and those beside one of them."""

    coarse: Sequence[float]
    beside: Callable[[float], Sequence[float]]
    at: Callable[[float], Smoothing]

    def best(self, trial: _Trial) -> Smoothing:
        first = {number: self.at(number) for number in self.coarse}
        number = min(first, key=lambda n: trial.error(first[n]))
        return min([first[number], *map(self.at, self.beside(number))], key=trial.error)


def _smoothquant(low: Floats, high: Floats, shift: Floats | None, largest: Floats) -> _Family:
    """largest (K,): max|w_j| over all linears of the group."""
    low, high = _shifted(low, high, shift)
    absmax = np.maximum(-low, high)
    alive = _is_alive(absmax) & _is_alive(largest)
    x, w = (np.log(values, where=alive, out=np.zeros_like(values)) for values in (absmax, largest))

    def at(alpha: float) -> Smoothing:
        logarithms = alpha * x - (1 - alpha) * w
        # only ratios of scales matter: around 1 they leave the norm's gains as large as they were
        logarithms -= logarithms.mean(where=alive) if alive.any() else 0
        scale = np.exp(np.where(alive, logarithms, 0)).astype(np.float32)
        return Smoothing(scale, shift, f"{_with(shift)}smoothquant {alpha:.2f}")

    return _Family(ALPHAS, lambda alpha: (alpha - ALPHA_STEP, alpha + ALPHA_STEP), at)


def _outlier_suppression(low: Floats, high: Floats, shift: Floats | None) -> _Family:
    low, high = _shifted(low, high, shift)
    absmax = np.maximum(-low, high)
    alive = absmax[_is_alive(absmax)] if absmax.any() else np.ones(1, np.float32)
    grid = np.geomspace(alive.max(), np.median(alive), THRESHOLDS + 1)
    ratio = float(grid[1] / grid[0])

    def at(threshold: float) -> Smoothing:
        scale = np.maximum(1, np.maximum(high, -low) / np.float32(threshold))
        return Smoothing(scale, shift, f"{_with(shift)}os+ t={threshold:.3g}")

    return _Family(
        grid[1:].tolist(),
        lambda t: [t * ratio**part for part in (-2 / 3, -1 / 3, 1 / 3, 2 / 3)],
        at,
    )


def _shifted(low: Floats, high: Floats, shift: Floats | None) -> tuple[Floats, Floats]:
    return (low, high) if shift is None else (low - shift, high - shift)


def _with(shift: Floats | None) -> str:
    return "" if shift is None else "shift, "


def _limits(
    rows: Floats, minimum: Floats | None, maximum: Floats | None, tied: Indices
) -> tuple[Floats, Floats]:
    low = rows.min(axis=0) if minimum is None else minimum
    high = rows.max(axis=0) if maximum is None else maximum
    return -_tied(-low, tied), _tied(high, tied)


def _tied(values: Floats, rows: Indices) -> Floats:
    """The largest of the channels that share a number, for each of them."""
    largest = np.full(rows.max() + 1, -np.inf, np.float32)
    np.maximum.at(largest, rows, values)
    return largest[rows]


def _some(weight: Floats, count: int) -> Floats:
    """Up to `count` of its rows, evenly apart."""
    return weight[:: -(-len(weight) // count)]


def _is_alive(values: Floats) -> NDArray[np.bool_]:
    alive: NDArray[np.bool_] = values > TINY * values.max(initial=0)
    return alive


def _power(y: Floats) -> float:
    return float(np.square(y).sum(dtype=np.float64))
