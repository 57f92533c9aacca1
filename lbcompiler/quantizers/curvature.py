"""The layer's input as a quantizer uses it: a Hessian that can be factorized, and the best weight.

With damping d the problem is ||W X - W^ X^||^2 + d ||W - W^||^2 (means over tokens). Its terms in
W^ are (W^ - W*) (H + d I) (W^ - W*)^T, with W* = W (C + d I) (H + d I)^-1 and C the cross moments:
so a quantizer that rounds W* under H + d I solves it exactly, and W* = W where x = x^. (GPTAQ,
arXiv 2504.02692, reaches the same end from within GPTQ's loop, by an approximation.)
"""

from dataclasses import dataclass
from functools import cached_property

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
    """weight: (N, K) float32. hessian: (K, K) float64, damped, hence positive definite. root:
    (K, K) float64, lower triangular, L L^T = H with its columns in the reverse of `order`.
    difference: (K, K) float64, C - H without damping; None where it is nothing."""

    weight: Floats
    hessian: NDArray[np.float64]
    root: NDArray[np.float64]
    difference: NDArray[np.float64] | None = None

    @cached_property
    def target(self) -> Floats:
        """(N, K): the weight W* to be rounded."""
        if self.difference is None:
            return self.weight
        last_first = self.order[::-1]
        weight = self.weight.astype(np.float64)
        pull = (weight @ self.difference).T
        pull[last_first] = cho_solve((self.root, True), pull[last_first], check_finite=False)
        return (weight + pull.T).astype(np.float32)

    @property
    def importance(self) -> Floats:
        """(K,): the diagonal of H."""
        return np.diagonal(self.hessian).astype(np.float32)

    @cached_property
    def _factor(self) -> tuple[Floats, Floats]:
        """(feedback, R_jj^2) in the order of rounding, of R (K, K), upper triangular: H = R R^T
        with the columns of H in that order.
        """
        root = self.root[::-1, ::-1]
        diagonal = np.diagonal(root)
        feedback = np.ascontiguousarray((root / diagonal).T, np.float32)
        return feedback, np.square(diagonal).astype(np.float32)

    @property
    def feedback(self) -> Floats:
        """(K, K) float32 of GPTQ: R_ij / R_jj in row j and column i < j, ones on the diagonal."""
        return self._factor[0]

    @property
    def pivots(self) -> Floats:
        """(K,) float32, by column: R_jj^2, its mean square beside what later columns tell of it.
        Where w'_j is column j with its feedback, the objective is sum R_jj^2 (w'_j - q_j)^2.
        """
        pivots = np.empty(len(self.hessian), np.float32)
        pivots[self.order] = self._factor[1]
        return pivots

    def row_objectives(self, errors: Floats) -> Floats:
        """(N,): what `objective` sums over rows; errors (K, N), the columns in the order of
        rounding. E R is R_jj times E_j + sum over i < j of E_i R_ij / R_jj.
        """
        feedback, squares = self._factor
        costs: Floats = squares @ np.square(feedback @ errors)
        return costs

    def objective(self, error: Floats) -> float:
        """tr(E H E^T) of E (N, K): what the output loses, as the damped problem has it."""
        exact = error.astype(np.float64)
        return float(np.einsum("nk,nk->", exact @ self.hessian, exact))

    @cached_property
    def order(self) -> Indices:
        """(K,): the columns, those of large mean square first."""
        return _order(self.hessian)


def curvature(problem: Problem, method: str) -> Curvature:
    """Raises ConfigError, in the name of `method`, without a Hessian and for one that is none."""
    if problem.hessian is None:
        raise ConfigError(
            f"quantizer {method} looks at the layers' inputs: give calibration data, or choose rtn"
        )
    k = problem.weight.shape[1]
    hessian = _checked(problem.hessian, k, "Hessian")
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
    difference = None
    if problem.cross is not None:
        difference = _checked(problem.cross, k, "cross moments") - hessian
    return Curvature(problem.weight, *_factorized(hessian), difference)


def _checked(moments: Floats, k: int, name: str) -> NDArray[np.float64]:
    if moments.shape != (k, k):
        raise ConfigError(f"the {name} of K = {k} inputs is {(k, k)}, not {moments.shape}: {MEND}")
    if not np.isfinite(moments).all():
        raise ConfigError(f"the {name} holds NaN or infinity: look for it in the calibration data")
    return moments.astype(np.float64)


def _order(hessian: NDArray[np.float64]) -> Indices:
    return np.argsort(-np.diagonal(hessian).astype(np.float32), kind="stable")


def _factorized(hessian: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """H + d I with the least damping that can be factorized, and its root. Raises ConfigError
    without one.
    """
    mean = float(np.diagonal(hessian).mean()) or 1.0  # without any input all weights are as good
    symmetric = (hessian + hessian.T) / 2
    for damping in DAMPING:
        damped = symmetric + damping * mean * np.eye(len(hessian))
        last_first = _order(damped)[::-1]
        try:
            root = np.linalg.cholesky(damped[np.ix_(last_first, last_first)])
        except np.linalg.LinAlgError:
            continue
        return damped, root.astype(np.float64, copy=False)
    raise ConfigError(
        f"the Hessian has an eigenvalue below -{DAMPING[-1]:g} times its mean diagonal, so it is "
        f"no sum of squares: {MEND}"
    )
