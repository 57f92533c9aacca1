"""Scale search: round to nearest under the scales of least squared error, each scale rounded first.

Where a Hessian is known its diagonal weighs the errors: a column that is read loudly counts more
(plain errors made the KL of a NVFP4 model worse than no search at all)."""

from lbcompiler.formats import Quantized
from lbcompiler.quantizers.curvature import importance
from lbcompiler.quantizers.problem import Problem, searched_rule


def mse(problem: Problem) -> Quantized:
    """(N, K) float32 -> its codes under searched scales."""
    weights = None if problem.hessian is None else importance(problem, "mse")
    rule = searched_rule(problem.fmt, problem.rule)
    return problem.fmt.quantize(problem.weight, rule, importance=weights)
