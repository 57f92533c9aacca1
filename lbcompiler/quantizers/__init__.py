"""Quantizers: a weight -> its codes. One method a file, one line in the table, one interface."""

from collections.abc import Callable

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.ir.model import Array
from lbcompiler.quantizers.rtn import round_to_nearest

Quantizer = Callable[
    [Array, BlockFormat, str], Quantized
]  # (weight (N, K) f32, format, scale rule)

QUANTIZERS: dict[str, Quantizer] = {"rtn": round_to_nearest}

__all__ = ["QUANTIZERS", "Quantizer", "round_to_nearest"]
