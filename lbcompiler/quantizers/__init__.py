"""Quantizers: a weight -> its codes. One method a file, one line in the table, one interface."""

from lbcompiler.quantizers.problem import Method, Problem, Quantizer
from lbcompiler.quantizers.rtn import round_to_nearest

QUANTIZERS: dict[str, Method] = {"rtn": Method(round_to_nearest)}

__all__ = ["QUANTIZERS", "Method", "Problem", "Quantizer", "round_to_nearest"]
