"""What a `Prologue` computes, in many ways, and what it must give."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.ir.prologue import Prologue
from tests.targets.cuda.reference import ROUNDING

Array = NDArray[Any]
M = 5
LAYER_NORM = Prologue(norm="layer_norm", epsilon=1e-5)
RMS_NORM = Prologue(norm="rms_norm", epsilon=1e-6)
KEPT = (  # each with its row, by which the operands are judged
    replace(LAYER_NORM, keeps_row=True),
    replace(LAYER_NORM, combine="add", keeps_sum=True, keeps_row=True),
    replace(RMS_NORM, combine="add", keeps_sum=True, keeps_row=True),
    Prologue(activation="silu", combine="multiply", keeps_row=True),
    Prologue(combine="add", keeps_row=True),
    Prologue(activation="relu", keeps_row=True),
)
GAINS = {"none": 0, "rms_norm": 1, "layer_norm": 2}


def inputs_of(prologue: Prologue, k: int) -> list[Array]:
    rng = np.random.default_rng(k)
    rows = [rng.standard_normal((M, k)) * 3 + 1 for _ in range(prologue.rows)]
    rows += [rng.standard_normal(k) for _ in range(GAINS[prologue.norm])]
    rows[0][0] = 0
    rows[0][1] *= 1e-10
    rows[0][2] *= 1e10
    return [row.astype(np.float32) for row in rows]


def expected(prologue: Prologue, k: int) -> tuple[Array, Array, Array]:
    """(sum, row) in float64, and how far a row may be from it.

    A sum of k terms in halves and by warps is off by at most log2(128) + 8 + k / 1024 + 2 roundings
    of the magnitudes; statistics enter the row with a relative error of that, and the dozen other
    operations round once each.
    """
    x, *rest = (row.astype(np.float64) for row in inputs_of(prologue, k))
    with np.errstate(over="ignore"):
        silu = x / (1 + np.exp(-x))
    x = {"none": x, "relu": np.maximum(x, 0), "silu": silu}[prologue.activation]
    if prologue.combine != "none":
        x = x + rest.pop(0) if prologue.combine == "add" else x * rest.pop(0)
    roundings = 17 + k / 1024 + 12
    if prologue.norm == "none":
        return x, x, roundings * ROUNDING * np.abs(x)
    mean = x.mean(axis=-1, keepdims=True) if prologue.norm == "layer_norm" else 0
    scale = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + prologue.epsilon)
    gamma, beta = rest[0], rest[1] if len(rest) > 1 else np.zeros(k)
    row = (x - mean) * scale * gamma + beta
    size = (np.abs(x) + np.abs(x).mean(axis=-1, keepdims=True)) * scale * np.abs(gamma)
    return x, row, roundings * ROUNDING * (size + np.abs(beta))
