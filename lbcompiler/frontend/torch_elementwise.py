"""Converters of torch's elementwise operators: a result needs one element of each input."""

from collections.abc import Callable
from typing import Any

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_build import Build, Expr
from lbcompiler.frontend.torch_values import is_tensor

op = relax.op
Converter = Callable[..., Any]


def unary(function: Callable[[Expr], Expr]) -> Converter:
    """An operator of one tensor; an int tensor is cast first where the result is float."""

    def convert(b: Build, x: Expr, *_: Any) -> Expr:
        return function(b.cast(x, "float32") if b.out_dtype == "float32" else x)

    return convert


def binary(function: Callable[[Expr, Expr], Expr]) -> Converter:
    """An operator of two tensors or numbers, computed in the dtype of the result."""

    def convert(b: Build, x: Any, y: Any, *_: Any) -> Expr:
        return function(*(b.operand(value, b.out_dtype) for value in (x, y)))

    return convert


def common(b: Build, *values: Any) -> list[Expr]:
    """The operands of a comparison, in the dtype that torch promotes them to."""
    dtypes = {b.dtype(value) for value in values if is_tensor(value)}
    if "float32" in dtypes or any(isinstance(value, float) for value in values):
        return [b.operand(value, "float32") for value in values]
    if dtypes == {"bool"} and all(is_tensor(value) or isinstance(value, bool) for value in values):
        return [b.operand(value, "bool") for value in values]
    return [b.operand(value, "int64") for value in values]


def comparison(function: Callable[[Expr, Expr], Expr]) -> Converter:
    def convert(b: Build, x: Any, y: Any, *_: Any) -> Expr:
        x, y = common(b, x, y)
        if b.dtype(x) == "bool":
            x, y = b.cast(x, "int32"), b.cast(y, "int32")
        return function(x, y)

    return convert


def logical(function: Callable[..., Expr]) -> Converter:
    """An operator on truth values: a number is true unless it is zero."""

    def convert(b: Build, *values: Any) -> Expr:
        return function(*(b.operand(value, "bool") for value in values))

    return convert


def bitwise(on_bool: Callable[..., Expr], on_int: Callable[..., Expr]) -> Converter:
    def convert(b: Build, *values: Any) -> Expr:
        operands = [b.operand(value, b.out_dtype) for value in values]
        return on_bool(*operands) if b.out_dtype == "bool" else on_int(*operands)

    return convert


def scaled(function: Callable[[Expr, Expr], Expr]) -> Converter:
    """x + alpha * y and x - alpha * y; on truth values + is or."""

    def convert(b: Build, x: Any, y: Any, alpha: Any = 1, *_: Any) -> Expr:
        if b.out_dtype == "bool":
            return op.logical_or(b.operand(x, "bool"), b.operand(y, "bool"))
        x, y = b.operand(x, b.out_dtype), b.operand(y, b.out_dtype)
        if alpha != 1:
            y = b.emit(op.multiply(y, b.scalar(alpha, b.out_dtype)))
        return function(x, y)

    return convert


def multiply(b: Build, x: Any, y: Any) -> Expr:
    if is_tensor(x) and not is_tensor(y) and y == 1:
        return b.cast(x, b.out_dtype)
    x, y = b.operand(x, b.out_dtype), b.operand(y, b.out_dtype)
    return op.logical_and(x, y) if b.out_dtype == "bool" else op.multiply(x, y)


def reversed_subtract(b: Build, x: Any, y: Any, alpha: Any = 1) -> Expr:
    return scaled(op.subtract)(b, y, x, alpha)


def divide(b: Build, x: Any, y: Any, rounding: str | None = None) -> Expr:
    x, y = b.operand(x, b.out_dtype), b.operand(y, b.out_dtype)
    if rounding is None:
        return op.divide(x, y)
    if rounding == "floor":
        return op.floor_divide(x, y)
    if b.out_dtype == "float32":
        return op.trunc(b.emit(op.divide(x, y)))
    return op.divide(x, y)  # on ints it rounds toward zero


def power(b: Build, x: Any, exponent: Any) -> Expr:
    """Small exponents are products: pow of a library is many times slower, and less exact."""
    if not is_tensor(x) or not isinstance(exponent, int | float):
        return op.power(b.operand(x, b.out_dtype), b.operand(exponent, b.out_dtype))
    x = b.cast(x, b.out_dtype)
    if exponent in (2, 3, 4):
        squared = b.emit(op.multiply(x, x))
        if exponent == 2:
            return squared
        return op.multiply(squared, x if exponent == 3 else squared)
    if b.out_dtype == "float32" and exponent in (0.5, -0.5):
        return op.sqrt(x) if exponent > 0 else op.rsqrt(x)
    return op.power(x, b.scalar(exponent, b.out_dtype))


def clamp(b: Build, x: Expr, low: Any = None, high: Any = None) -> Expr:
    x = b.cast(x, b.out_dtype)
    if low is not None:
        x = b.emit(op.maximum(x, b.operand(low, b.out_dtype)))
    if high is not None:
        x = b.emit(op.minimum(x, b.operand(high, b.out_dtype)))
    return x


def clamp_max(b: Build, x: Expr, high: Any) -> Expr:
    return clamp(b, x, None, high)


def where(b: Build, condition: Expr, x: Any, y: Any) -> Expr:
    values = (b.operand(value, b.out_dtype) for value in (x, y))
    return op.where(b.cast(condition, "bool"), *values)


def masked_fill(b: Build, x: Expr, mask: Expr, value: Any) -> Expr:
    return where(b, mask, value, x)


def cast(b: Build, x: Expr, *_: Any) -> Expr:
    return b.cast(x, b.out_dtype)


def gelu(b: Build, x: Expr, approximate: str = "none") -> Expr:
    return op.nn.gelu_tanh(x) if approximate == "tanh" else op.nn.gelu(x)


def hardtanh(b: Build, x: Expr, low: float = -1.0, high: float = 1.0) -> Expr:
    return op.clip(x, low, high)


def relu6(_: Build, x: Expr) -> Expr:
    return op.clip(x, 0, 6)


def _hard_gate(b: Build, x: Expr) -> Expr:
    """min(max(x + 3, 0), 6) / 6"""
    shifted = b.emit(op.clip(b.emit(op.add(x, b.scalar(3.0, "float32"))), 0, 6))
    return b.emit(op.divide(shifted, b.scalar(6.0, "float32")))


def hardsigmoid(b: Build, x: Expr) -> Expr:
    return _hard_gate(b, x)


def hardswish(b: Build, x: Expr) -> Expr:
    return op.multiply(x, _hard_gate(b, x))


def leaky_relu(_: Build, x: Expr, slope: float = 0.01) -> Expr:
    return op.nn.leakyrelu(x, float(slope))


def elu(
    b: Build, x: Expr, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Expr:
    inner = b.emit(op.multiply(x, b.scalar(input_scale, "float32"))) if input_scale != 1 else x
    below = b.emit(op.subtract(b.emit(op.exp(inner)), b.scalar(1.0, "float32")))
    if alpha * scale != 1:
        below = b.emit(op.multiply(below, b.scalar(alpha * scale, "float32")))
    above = b.emit(op.multiply(x, b.scalar(scale, "float32"))) if scale != 1 else x
    return op.where(b.emit(op.greater(x, b.scalar(0.0, "float32"))), above, below)


def selu(b: Build, x: Expr) -> Expr:
    return elu(b, x, 1.6732632423543772, 1.0507009873554805)


def celu(b: Build, x: Expr, alpha: float = 1.0) -> Expr:
    return elu(b, x, alpha, 1.0, 1.0 / alpha)


def prelu(b: Build, x: Expr, slope: Expr) -> Expr:
    rank = len(b.shape(x))
    if rank > 2:
        slope = b.reshape(slope, [*b.shape(slope), *([1] * (rank - 2))])
    negative = b.emit(op.multiply(x, slope))
    return op.where(b.emit(op.greater(x, b.scalar(0.0, "float32"))), x, negative)


def softplus(b: Build, x: Expr, beta: float = 1.0, threshold: float = 20.0) -> Expr:
    """log(1 + exp(c x)) / c as max(x, 0) + log(1 + exp(-|c x|)) / c: never overflows."""
    inner = b.emit(op.multiply(x, b.scalar(beta, "float32"))) if beta != 1 else x
    decay = b.emit(op.exp(b.emit(op.negative(b.emit(op.abs(inner))))))
    tail = b.emit(op.log(b.emit(op.add(decay, b.scalar(1.0, "float32")))))
    if beta != 1:
        tail = b.emit(op.divide(tail, b.scalar(beta, "float32")))
    smooth = b.emit(op.add(b.emit(op.nn.relu(x)), tail))
    return op.where(b.emit(op.greater(inner, b.scalar(threshold, "float32"))), x, smooth)


def mish(b: Build, x: Expr) -> Expr:
    return op.multiply(x, b.emit(op.tanh(b.emit(softplus(b, x)))))


def remainder(b: Build, x: Any, y: Any) -> Expr:
    return op.floor_mod(b.operand(x, b.out_dtype), b.operand(y, b.out_dtype))


def round_to_even(_: Build, x: Expr, decimals: int = 0) -> Expr:
    if decimals:
        raise ModelError(f"rounding to {decimals} decimals is not supported")
    return op.round(x)


def reciprocal(b: Build, x: Expr) -> Expr:
    return op.divide(b.scalar(1.0, "float32"), b.cast(x, "float32"))


def addcmul(b: Build, x: Expr, left: Expr, right: Expr, value: float = 1) -> Expr:
    return scaled(op.add)(b, x, b.emit(op.multiply(left, right)), value)


def _log_of(base: float) -> Converter:
    def convert(b: Build, x: Expr) -> Expr:
        return op.divide(b.emit(op.log(b.cast(x, "float32"))), b.scalar(base, "float32"))

    return convert


def log1p(b: Build, x: Expr) -> Expr:
    return op.log(b.emit(op.add(b.cast(x, "float32"), b.scalar(1.0, "float32"))))


def expm1(b: Build, x: Expr) -> Expr:
    return op.subtract(b.emit(op.exp(b.cast(x, "float32"))), b.scalar(1.0, "float32"))


CASTS = (
    "_to_copy", "alias", "clone", "contiguous", "copy", "detach", "dropout", "feature_dropout",
    "lift_fresh_copy", "to", "type_as",
)  # fmt: skip
SAME = (
    "abs", "acos", "asin", "asinh", "atan", "ceil", "cos", "cosh", "erf", "exp", "floor",
    "isfinite", "isinf", "isnan", "log", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt",
    "square", "tan", "tanh", "trunc",
)  # fmt: skip

CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(CASTS, cast),
    **{name: unary(getattr(op, name)) for name in SAME},
    "__and__": bitwise(op.logical_and, op.bitwise_and),
    "__or__": bitwise(op.logical_or, op.bitwise_or),
    "__xor__": bitwise(op.logical_xor, op.bitwise_xor),
    "add": scaled(op.add),
    "addcmul": addcmul,
    "atan2": binary(op.atan2),
    "bitwise_and": bitwise(op.logical_and, op.bitwise_and),
    "bitwise_not": bitwise(op.logical_not, op.bitwise_not),
    "bitwise_or": bitwise(op.logical_or, op.bitwise_or),
    "bitwise_xor": bitwise(op.logical_xor, op.bitwise_xor),
    "celu": celu,
    "clamp": clamp,
    "clamp_max": clamp_max,
    "clamp_min": clamp,
    "div": divide,
    "elu": elu,
    "eq": comparison(op.equal),
    "expm1": expm1,
    "floor_divide": binary(op.floor_divide),
    "fmod": binary(op.mod),
    "ge": comparison(op.greater_equal),
    "gelu": gelu,
    "gt": comparison(op.greater),
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "hardtanh": hardtanh,
    "le": comparison(op.less_equal),
    "leaky_relu": leaky_relu,
    "log10": _log_of(2.302585092994046),
    "log1p": log1p,
    "log2": _log_of(0.6931471805599453),
    "logical_and": logical(op.logical_and),
    "logical_not": logical(op.logical_not),
    "logical_or": logical(op.logical_or),
    "logical_xor": logical(op.logical_xor),
    "lt": comparison(op.less),
    "masked_fill": masked_fill,
    "maximum": binary(op.maximum),
    "minimum": binary(op.minimum),
    "mish": mish,
    "mul": multiply,
    "ne": comparison(op.not_equal),
    "neg": unary(op.negative),
    "pow": power,
    "prelu": prelu,
    "reciprocal": reciprocal,
    "relu": unary(op.nn.relu),
    "relu6": relu6,
    "remainder": remainder,
    "round": round_to_even,
    "rsub": reversed_subtract,
    "selu": selu,
    "silu": unary(op.nn.silu),
    "softplus": softplus,
    "sub": scaled(op.subtract),
    "true_divide": divide,
    "where": where,
}
