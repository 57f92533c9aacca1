"""QuantEase (arXiv 2309.01885): coordinate descent on the layer's output error.

With all columns but j held, the best column j is the nearest value to

    beta_j = w_j + sum over i != j of (w_i - w^_i) H_ij / H_jj,

so a sweep over the columns never raises the objective. Every third sweep leaves beta_j unrounded,
which lets the next ones out of a corner; the best rounded iterate is the result. It starts from
rounding to nearest, whose scales hold throughout."""

import numpy as np

from lbcompiler.formats import Quantized
from lbcompiler.formats.elements import Floats
from lbcompiler.quantizers.curvature import Curvature, curvature
from lbcompiler.quantizers.grid import Grid
from lbcompiler.quantizers.problem import Problem

SWEEPS = 18
RELAXED = 3  # of as many sweeps the last is not rounded
COLUMNS = 128  # whose steps reach all others in one matrix product


def quantease(problem: Problem) -> Quantized:
    """(N, K) float32 -> its codes under the scales of the problem's rule."""
    curved = curvature(problem, "quantease")
    return descended(curved, Grid.under(curved, problem))


def descended(curved: Curvature, grid: Grid) -> Quantized:
    """The best codes under the grid's scales that the sweeps come by."""
    order = curved.order
    hessian = np.ascontiguousarray(curved.hessian[np.ix_(order, order)], np.float32)
    target = np.ascontiguousarray(curved.target.T[order])  # (K, N): a column of W is a row here
    steps = np.ascontiguousarray(grid.steps.T[order])
    with np.errstate(over="ignore"):  # a quotient may be infinite: it saturates
        values = grid.fmt.element.round(target / steps)
        held = values * steps
        pull = hessian @ (target - held)
        best, least = values, _objective(pull, target - held)
        for sweep in range(1, SWEEPS + 1):
            is_relaxed = sweep % RELAXED == 0 and sweep < SWEEPS
            _sweep(hessian, pull, held, None if is_relaxed else steps, grid)
            if is_relaxed:
                continue
            objective = _objective(pull, target - held)
            if objective < least:
                best, least = grid.fmt.element.round(held / steps), objective
            elif sweep % RELAXED == 1 and objective == least:
                break  # nothing moves any more
    return grid.encode_columns(best, order)


def _sweep(hessian: Floats, pull: Floats, held: Floats, steps: Floats | None, grid: Grid) -> None:
    """Every column of `held` (K, N) in turn to its best value; without `steps` unrounded. `pull` is
    H (W - held) before and after.
    """
    diagonal = np.diagonal(hessian)
    k, n = held.shape
    for start in range(0, k, COLUMNS):
        stop = min(start + COLUMNS, k)
        moved = np.empty((stop - start, n), np.float32)
        for j in range(start, stop):
            felt = pull[j] + hessian[j, start:j] @ moved[: j - start]
            wanted = held[j] + felt / diagonal[j]
            if steps is not None:
                wanted = grid.fmt.element.round(wanted / steps[j]) * steps[j]
            np.subtract(held[j], wanted, out=moved[j - start])
            held[j] = wanted
        pull += hessian[:, start:stop] @ moved


def _objective(pull: Floats, error: Floats) -> float:
    """tr(E^T H E) of E (K, N) and H E."""
    return float(np.einsum("kn,kn->", error, pull, dtype=np.float64))
