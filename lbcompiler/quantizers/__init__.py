"""Quantizers: a weight -> its codes. One method a file, one line in the table, one interface."""

from lbcompiler.quantizers.gptq import gptq
from lbcompiler.quantizers.mr_gptq import STRETCHED, mr_gptq
from lbcompiler.quantizers.mse import mse
from lbcompiler.quantizers.problem import Method, Problem, Quantizer
from lbcompiler.quantizers.quantease import quantease
from lbcompiler.quantizers.rtn import round_to_nearest

QUANTIZERS: dict[str, Method] = {
    "rtn": Method(round_to_nearest, "round to nearest"),
    "mse": Method(mse, "scales of least squared error", searches=True),
    "gptq": Method(gptq, "errors made up for by later columns", needs_hessian=True),
    "mr_gptq": Method(
        mr_gptq,
        "rotation, searched scales, GPTQ",
        needs_hessian=True,
        rotates=True,
        searches=True,
        scales=STRETCHED,
    ),
    "quantease": Method(quantease, "coordinate descent", needs_hessian=True),
}

__all__ = ["QUANTIZERS", "Method", "Problem", "Quantizer", "round_to_nearest"]
