"""The layer's input as a quantizer uses it: a Hessian that can be factorized, and the best weight.

With damping d the problem is ||W X - W^ X^||^2 + d ||W - W^||^2 (means over tokens). Its terms in
W^ are (W^ - W*) (H + d I) (W^ - W*)^T, with W* = W (C + d I) (H + d I)^-1 and C the cross moments:
so a quantizer that rounds W* under H + d I solves it exactly, and W* = W where x = x^. (GPTAQ,
arXiv 2504.02692, reaches the same end from within GPTQ's loop, by an approximation.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve

from lbcompiler.errors import ConfigError
from lbcompiler.formats.elements import Floats
from lbcompiler.quantizers.problem import Problem

MEND = "collect the calibration statistics again"
Indices = NDArray[np.intp]

DAMPING = (0.01, 0.1, 1.0)  # times the mean of the diagonal; the next where one is not enough
ASYMMETRY = 1e-3  # of the largest entry: what sums in another order may differ by


@dataclass(frozen=True, eq=False)
class Curvature:
    """target: (N, K) float32, the weight W* to be rounded. hessian: (K, K) float64, damped, hence
    positive definite. order: (K,), the columns, those of large mean square first.

    With R (K, K), upper triangular, H = R R^T with the columns of H in that order, feedback is
    (K, K) float32, R_ij / R_jj in row j and column i < j, ones on the diagonal; squares (K,)
    float32, R_jj^2. R itself is float64 and not kept."""

    target: Floats
    hessian: NDArray[np.float64]
    order: Indices
    feedback: Floats
    squares: Floats

    @property
    def pivots(self) -> Floats:
        """(K,) float32, by column: R_jj^2, its mean square beside what later columns tell of it.
        Where w'_j is column j with its feedback, the objective is sum R_jj^2 (w'_j - q_j)^2.
        """
        pivots = np.empty(len(self.hessian), np.float32)
        pivots[self.order] = self.squares
        return pivots

    def row_objectives(self, errors: Floats) -> Floats:
        """(N,): what `objective` sums over rows; errors (K, N), the columns in the order of
        rounding. E R is R_jj times E_j + sum over i < j of E_i R_ij / R_jj.
        """
        costs: Floats = self.squares @ np.square(self.feedback @ errors)
        return costs

    def objective(self, error: Floats) -> float:
        """tr(E H E^T) of E (N, K): what the output loses, as the damped problem has it."""
        exact = error.astype(np.float64)
        return float(np.einsum("nk,nk->", exact @ self.hessian, exact))


def curvature(problem: Problem, method: str) -> Curvature:
    """Raises ConfigError, in the name of `method`, without a Hessian and for one that is none."""
    hessian = _hessian(problem, method)
    damped, order, lower = _factorized(hessian)
    target, last_first = problem.weight, order[::-1]
    if problem.cross is not None:
        weight = target.astype(np.float64)
        difference = _checked(problem.cross, len(hessian), "cross moments") - hessian
        pull = (weight @ difference).T
        pull[last_first] = cho_solve((lower, True), pull[last_first], check_finite=False)
        target = (weight + pull.T).astype(np.float32)
    root = lower[::-1, ::-1]
    diagonal = np.diagonal(root)
    feedback = np.ascontiguousarray((root / diagonal).T, np.float32)
    return Curvature(target, damped, order, feedback, np.square(diagonal).astype(np.float32))


def importance(problem: Problem, method: str) -> Floats:
    """(K,) float32: the diagonal of the damped Hessian. Raises ConfigError as `curvature`."""
    damped, _, _ = _factorized(_hessian(problem, method))
    return np.diagonal(damped).astype(np.float32)


def _hessian(problem: Problem, method: str) -> NDArray[np.float64]:
    """(K, K), not damped."""
    if problem.hessian is None:
        raise ConfigError(
            f"quantizer {method} looks at the layers' inputs: give calibration data, or choose rtn"
        )
    hessian = _checked(problem.hessian, problem.weight.shape[1], "Hessian")
    largest = np.abs(hessian).max(initial=0)
    if np.abs(hessian - hessian.T).max(initial=0) > ASYMMETRY * largest:
        raise ConfigError(f"the Hessian of an input is symmetric, and this one is not: {MEND}")
    diagonal = np.diagonal(hessian)
    if (diagonal < 0).any():
        channel = int(diagonal.argmin())
        raise ConfigError(
            f"the mean square of input channel {channel} is {diagonal[channel]:.3g}, below zero: "
            f"{MEND}"
        )
    return hessian


def _checked(moments: Floats, k: int, name: str) -> NDArray[np.float64]:
    if moments.shape != (k, k):
        raise ConfigError(f"the {name} of K = {k} inputs is {(k, k)}, not {moments.shape}: {MEND}")
    if not np.isfinite(moments).all():
        raise ConfigError(f"the {name} holds NaN or infinity: look for it in the calibration data")
    return moments.astype(np.float64)


def _factorized(
    hessian: NDArray[np.float64],
) -> tuple[NDArray[np.float64], Indices, NDArray[np.float64]]:
    """H + d I with the least damping that can be factorized; the order of its columns; L, lower
    triangular, L L^T = H + d I with its columns in the reverse order. Raises ConfigError without
    one.
    """
    mean = float(np.diagonal(hessian).mean()) or 1.0  # without any input all weights are as good
    symmetric = (hessian + hessian.T) / 2
    for damping in DAMPING:
        damped = symmetric + damping * mean * np.eye(len(hessian))
        order = np.argsort(-np.diagonal(damped).astype(np.float32), kind="stable")
        try:
            lower: NDArray[Any] = np.linalg.cholesky(damped[np.ix_(order[::-1], order[::-1])])
        except np.linalg.LinAlgError:
            continue
        return damped, order, lower
    raise ConfigError(
        f"the Hessian has an eigenvalue below -{DAMPING[-1]:g} times its mean diagonal, so it is "
        f"no sum of squares: {MEND}"
    )
