"""Scales that are plain: powers of two with exponents so small that two of them combine exactly.

Beyond the limit, and for NaN, kernels take a slower way (gemm_integer.py, float_activations.py).
"""

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.gemm import Task
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    bound,
    cast,
    lanes_of,
    like,
    maximum,
    reduce_max_unsigned,
    splat,
)
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS
from lbcompiler.targets.cpu.packed_weights import load_scales

ADDED = 62  # exponents up to +- this in both scales: their sum is one of a normal float32
# No product of two such numbers, nor a sum of some, is a denormal or overflows; nor of such weights
# and activations within ADDED.
BFLOAT16 = 40


def flagged(task: Task, flags: Any) -> Expr:
    """Not 0 if a row of the task is not plain: flags int32 (M, 1), as `quantize` makes them."""
    found = Registers(1, "int32", 1)
    found[0] = tirx.const(0, "int32")
    with T.serial(task.count) as i:
        row = task.row(i)
        with T.serial(task.rows) as r:
            found[0] = found[0] | flags[row + r, 0]
    return found[0]


def unusual(isa: Isa, scales: Any, task: Task) -> Expr:
    """Not 0 if an E8M0 scale of the task's columns is beyond BFLOAT16; scales as layout.py has
    them.
    """
    lanes = isa.lanes
    found = Registers(1, "int32", lanes)
    found[0] = splat(0, "int32", lanes)
    with T.serial(int(scales.shape[1])) as block:
        for v in range(task.tile.columns * COLUMNS // lanes):
            stored = load_scales(scales, task.column, block, v, isa)
            found[0] = maximum(found[0], distance(stored))
    most = reduce_max_unsigned(found[0])
    return tirx.Select(most > BFLOAT16, tirx.const(1, "int32"), tirx.const(0, "int32"))


def distance(stored: Expr) -> Expr:
    """int32 lanes: how far the exponents of E8M0 bytes are from 0."""
    exponent = bound(cast("int32", stored) - splat(127, "int32", lanes_of(stored)))
    return maximum(exponent, like(exponent, "int32", 0) - exponent)
