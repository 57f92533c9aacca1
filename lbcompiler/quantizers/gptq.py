"""GPTQ (arXiv 2210.17323) in a static order: columns are rounded one by one, each making up for
the errors of those before it.

With H = R R^T, R upper triangular (the columns of H in the order of rounding), the objective is
||(W - Q) R||^2, and its column j holds only the errors up to j. So q_j is the nearest value to
w_j + sum over i < j of (w_i - q_i) R_ij / R_jj: greedy, term by term. This is GPTQ: its factor of
the inverse Hessian is R^-1 (arXiv 2307.13304 shows the two equal), but nothing is inverted here,
and the errors, once made, do not change. Columns of large mean square go first (`act_order`),
scales are fixed before that, in the original order, so that nothing is gathered at run time (arXiv
2509.23202, section 4.1). Greedy is not always better: rows, which the objective is a sum over, that
end above rounding to nearest are rounded to nearest.
"""

import numpy as np

from lbcompiler.formats import Quantized
from lbcompiler.quantizers.curvature import Curvature, curvature
from lbcompiler.quantizers.grid import Grid
from lbcompiler.quantizers.problem import Problem

COLUMNS = 128  # whose feedback from all columns before them is one matrix product


def gptq(problem: Problem) -> Quantized:
    """(N, K) float32 -> its codes under the scales of the problem's rule."""
    curved = curvature(problem, "gptq")
    return compensated(curved, Grid.under(curved, problem))


def compensated(curved: Curvature, grid: Grid) -> Quantized:
    """The codes that GPTQ gives under the grid's scales; no row worse than rounded to nearest."""
    order = curved.order
    feedback = curved.feedback
    element, k = grid.fmt.element, len(order)
    wanted = np.ascontiguousarray(curved.target.T[order])  # (K, N): a column of W is a row here
    steps = np.ascontiguousarray(grid.steps.T[order])
    errors, values = np.empty_like(wanted), np.empty_like(wanted)
    with np.errstate(over="ignore"):  # a quotient may be infinite: it saturates
        for start in range(0, k, COLUMNS):
            stop = min(start + COLUMNS, k)
            carried = feedback[start:stop, :start] @ errors[:start]
            for j in range(start, stop):
                carry = carried[j - start] + feedback[j, start:j] @ errors[start:j]
                values[j] = element.round((wanted[j] + carry) / steps[j])
                errors[j] = wanted[j] - values[j] * steps[j]
        nearest = element.round(wanted / steps)
    plain = curved.row_objectives(wanted - nearest * steps)
    values = np.where(plain < curved.row_objectives(errors), nearest, values)
    return grid.encode_columns(values, order)
