"""The activations of `lbc.linear` as expressions, for the functions that are scheduled by rule."""

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

Expr = Any


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")


def _sigmoid(x: Expr) -> Expr:
    return _number(1.0) / (_number(1.0) + tirx.exp(-x))


def _relu(x: Expr) -> Expr:
    """NaN stays."""
    return tirx.Select(x < _number(0.0), _number(0.0), x)


def _gelu(x: Expr) -> Expr:
    return x * _number(0.5) * (_number(1.0) + tirx.erf(x * _number(math.sqrt(0.5))))


def _gelu_tanh(x: Expr) -> Expr:
    inner = _number(math.sqrt(2 / math.pi)) * (x + _number(0.044715) * x * x * x)
    return x * _number(0.5) * (_number(1.0) + tirx.tanh(inner))


def _hardswish(x: Expr) -> Expr:
    clipped = tirx.min(tirx.max(x + _number(3.0), _number(0.0)), _number(6.0))
    return x * (clipped / _number(6.0))


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "none": lambda x: x,
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": tirx.tanh,
    "hardswish": _hardswish,
}
