"""Round to nearest: each block by itself, its scale by the format's rule."""

from lbcompiler.formats import Quantized
from lbcompiler.quantizers.problem import Problem


def round_to_nearest(problem: Problem) -> Quantized:
    """Codes (N, K), scales (N, ceil(K/block))[, tensor scale ()]."""
    return problem.fmt.quantize(problem.weight, problem.rule)
