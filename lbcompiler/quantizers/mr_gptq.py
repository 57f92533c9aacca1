"""MR-GPTQ (arXiv 2509.23202, section 4.1): block Hadamard, scale search, GPTQ in a static order.

The rotation is a pass, which the method's `rotates` asks for and measuring keeps or drops; what is
left is GPTQ under scales that were searched: E4M3 bytes within 8 of absmax's (`sweep`), or the two
nearest powers of two (`mse`). Their search rounds each scale within it and weighs errors by GPTQ's
pivots; the paper does neither, and rounds the best of 100 shrink factors afterwards.

MXFP4's scales, powers of two, are multiplied by 4/3 where that lowers the objective: one float32
for the whole weight, which its kernel multiplies sums by, as the paper folds it into the GEMM's
alpha (there always, and for activations too)."""

from dataclasses import replace

from lbcompiler.formats import Quantized
from lbcompiler.quantizers.curvature import curvature
from lbcompiler.quantizers.gptq import compensated
from lbcompiler.quantizers.grid import Grid
from lbcompiler.quantizers.problem import Problem, searched_rule

STRETCHED = ("mxfp4",)  # the formats that have the factor
FACTORS = (1.0, 4 / 3)


def mr_gptq(problem: Problem) -> Quantized:
    """(N, K) float32 -> its codes; those of a format in `STRETCHED` with a tensor scale."""
    problem = replace(problem, rule=searched_rule(problem.fmt, problem.rule))
    curved, fmt = curvature(problem, "mr_gptq"), problem.fmt
    if fmt.name not in STRETCHED:
        return compensated(curved, Grid.under(curved, problem))
    found = [compensated(curved, Grid.under(curved, problem, factor)) for factor in FACTORS]
    return min(found, key=lambda q: curved.objective(curved.target - fmt.dequantize(q)))
