"""Scale search: round to nearest under the scales of least squared error, each scale rounded first.

Where a Hessian is known its diagonal weighs the errors: a column that is read loudly counts more
(plain errors made the KL of a NVFP4 model worse than no search at all)."""

import numpy as np

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.formats.scales import ScaleType
from lbcompiler.quantizers.curvature import curvature
from lbcompiler.quantizers.problem import Problem

SEARCHED = ("mse", "four_over_six", "sweep")  # the rules that search
BY_DEFAULT: dict[ScaleType, str] = {"e8m0": "mse", "e4m3": "sweep"}


def searched_rule(fmt: BlockFormat, rule: str) -> str:
    """`rule` where it searches, else the format's own search."""
    return rule if rule in SEARCHED else BY_DEFAULT[fmt.scale]


def mse(problem: Problem) -> Quantized:
    """(N, K) float32 -> its codes under searched scales."""
    importance = None
    if problem.hessian is not None:
        importance = np.ascontiguousarray(curvature(problem, "mse").importance)
    rule = searched_rule(problem.fmt, problem.rule)
    return problem.fmt.quantize(problem.weight, rule, importance=importance)
