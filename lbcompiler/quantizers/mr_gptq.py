"""MR-GPTQ (arXiv 2509.23202, section 4.1): block Hadamard, scale search, GPTQ in a static order.

The rotation is a pass, which the method's `rotates` asks for and measuring keeps or drops; what is
left is GPTQ under scales that were searched. Their search rounds each scale within it and weighs
errors by the Hessian's diagonal; the paper's does neither (its 100 shrink factors are rounded
afterwards), so this one can only be nearer to what is stored."""

from dataclasses import replace

from lbcompiler.formats import Quantized
from lbcompiler.quantizers.gptq import gptq
from lbcompiler.quantizers.problem import Problem, searched_rule


def mr_gptq(problem: Problem) -> Quantized:
    return gptq(replace(problem, rule=searched_rule(problem.fmt, problem.rule)))
