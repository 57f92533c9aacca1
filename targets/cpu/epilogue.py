"""What a linear does to its sum before it stores it: the activations, by the names that
`lbc.linear` carries.

Each takes and returns a float32 expression, scalar or vector. exp, erf and tanh are the polynomial
forms of `vector_math`, whose errors (a few units in the last place) are stated there.
"""

from collections.abc import Callable

from tvm import tirx

from lbcompiler.targets.cpu.intrinsics import Expr, like
from lbcompiler.targets.cpu.vector_math import vector_erf, vector_sigmoid, vector_tanh

ROOT_HALF = 0.7071067811865476
ROOT_TWO_OVER_PI = 0.7978845608028654


def _number(x: Expr, value: float) -> Expr:
    return like(x, "float32", value)


def relu(x: Expr) -> Expr:
    """max(x, 0); NaN stays."""
    return tirx.Select(x < _number(x, 0.0), _number(x, 0.0), x)


def gelu(x: Expr) -> Expr:
    """x/2 (1 + erf(x / sqrt 2))."""
    half = x * _number(x, 0.5)
    return half * (_number(x, 1.0) + vector_erf(x * _number(x, ROOT_HALF)))


def gelu_tanh(x: Expr) -> Expr:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    cube = x * x * x
    inner = _number(x, ROOT_TWO_OVER_PI) * (x + _number(x, 0.044715) * cube)
    return x * _number(x, 0.5) * (_number(x, 1.0) + vector_tanh(inner))


def silu(x: Expr) -> Expr:
    """x / (1 + e^-x)."""
    return x * vector_sigmoid(x)


def hardswish(x: Expr) -> Expr:
    """x min(max(x + 3, 0), 6) / 6; NaN stays."""
    shifted = x + _number(x, 3.0)
    below = tirx.Select(shifted < _number(x, 0.0), _number(x, 0.0), shifted)
    clamped = tirx.Select(_number(x, 6.0) < below, _number(x, 6.0), below)
    return x * clamped * _number(x, 1 / 6)


def _unchanged(x: Expr) -> Expr:
    return x


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {
    "none": _unchanged,
    "relu": relu,
    "gelu": gelu,
    "silu": silu,
    "sigmoid": vector_sigmoid,
    "tanh": vector_tanh,
    "hardswish": hardswish,
    "gelu_tanh": gelu_tanh,
}
