"""The activations that a linear's kernel may apply to what it writes, in numpy: the reference of
each.

Float32 in, float32 out, any shape; `gelu` is the exact one, with erf.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_erf = np.frompyfunc(math.erf, 1, 1)  # numpy has none, and scipy is much to ask for one function


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))  # never overflows
    result: Array = np.where(x >= 0, 1, small).astype(x.dtype) / (1 + small)
    return result


def _gelu(x: Array) -> Array:
    error_function: Array = np.asarray(_erf(x * math.sqrt(0.5)), x.dtype)
    return x * (0.5 * (1 + error_function))


def _gelu_tanh(x: Array) -> Array:
    return x * (0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))))


EPILOGUES: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hardswish": lambda x: x * (np.clip(x + 3, 0, 6) / 6),
}
