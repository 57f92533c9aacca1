"""x / sqrt(mean(x * x) + e) * g     ->  rms_norm(x, g; e)
rms_norm(x - mean(x), g; e) + b   ->  layer_norm(x, g, b; e)

with means along the last axis and g, b known there. Exporters spell norms out, as a quotient or
with a reciprocal root, and with the factors in any order. What is recognized runs as one kernel,
and can be fused with the quantization behind it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from lbcompiler.ir.constants import is_constant, scalar_of
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, rewrite

MULTIPLY, DIVIDE, ADD, SUBTRACT, POWER, SQRT, RSQRT, MEAN = (
    tvm.ir.Op.get(f"relax.{name}")
    for name in ("multiply", "divide", "add", "subtract", "power", "sqrt", "rsqrt", "mean")
)
RMS_NORM = tvm.ir.Op.get("relax.nn.rms_norm")


@dataclass(frozen=True)
class RecognizeNorms:
    name: ClassVar[str] = "recognize_norms"

    def __call__(self, model: Model) -> Model:
        def visit(call: Any, scope: Scope) -> Any:
            if call.op == MULTIPLY:
                return _rms_norm(call, scope)
            return _layer_norm(call, scope) if call.op == ADD else None

        return replace(model, module=rewrite(model.module, visit))


def _rms_norm(call: Any, scope: Scope) -> Any:
    for gamma, scaled in _both_ways(call):
        for x, epsilon in _over_root_mean_square(scaled, scope):
            if _is_row(gamma, x, scope):
                return relax.op.nn.rms_norm(x, gamma, [-1], epsilon)
    return None


def _layer_norm(call: Any, scope: Scope) -> Any:
    for beta, product in _both_ways(call):
        norm = scope.call_to(product, RMS_NORM)
        x = None if norm is None else _minus_mean(norm.args[0], scope)
        if x is not None and _is_row(beta, x, scope):
            return relax.op.nn.layer_norm(x, norm.args[1], beta, [-1], norm.attrs.epsilon)
    return None


def _over_root_mean_square(expr: Any, scope: Scope) -> Iterator[tuple[Any, float]]:
    """(x, e) where `expr` is x / sqrt(mean(x * x) + e)."""
    quotient = scope.call_to(expr, DIVIDE)
    if quotient is not None:
        found = _root_mean_square(quotient.args[1], SQRT, scope)
        if found is not None and found[0].same_as(quotient.args[0]):
            yield found
    product = scope.call_to(expr, MULTIPLY)
    for x, factor in () if product is None else _both_ways(product):
        found = _reciprocal_root_mean_square(factor, scope)
        if found is not None and found[0].same_as(x):
            yield found


def _reciprocal_root_mean_square(expr: Any, scope: Scope) -> tuple[Any, float] | None:
    """(x, e) of 1 / sqrt(mean(x * x) + e)."""
    quotient = scope.call_to(expr, DIVIDE)
    if quotient is None:
        return _root_mean_square(expr, RSQRT, scope)
    if scalar_of(scope.value(quotient.args[0])) != 1.0:
        return None
    return _root_mean_square(quotient.args[1], SQRT, scope)


def _root_mean_square(expr: Any, root: Any, scope: Scope) -> tuple[Any, float] | None:
    """(x, e) of root(mean(x * x) + e)."""
    call = scope.call_to(expr, root)
    add = None if call is None else scope.call_to(call.args[0], ADD)
    for number, mean in () if add is None else _both_ways(add):
        epsilon, square = scalar_of(scope.value(number)), _mean_of(mean, scope)
        x = None if square is None else _squared(square, scope)
        if epsilon is not None and x is not None:
            return x, epsilon
    return None


def _squared(expr: Any, scope: Scope) -> Any:
    product, power = scope.call_to(expr, MULTIPLY), scope.call_to(expr, POWER)
    if product is not None and product.args[0].same_as(product.args[1]):
        return product.args[0]
    if power is not None and scalar_of(scope.value(power.args[1])) == 2.0:
        return power.args[0]
    return None


def _minus_mean(expr: Any, scope: Scope) -> Any:
    """x where `expr` is x - mean(x)."""
    difference = scope.call_to(expr, SUBTRACT)
    if difference is None:
        return None
    x, mean = difference.args
    averaged = _mean_of(mean, scope)
    return x if averaged is not None and averaged.same_as(x) else None


def _mean_of(expr: Any, scope: Scope) -> Any:
    """What is averaged along the last axis alone, which stays there with one element."""
    mean = scope.call_to(expr, MEAN)
    if mean is None or mean.attrs.axis is None or not mean.attrs.keepdims:
        return None
    last = len(mean.args[0].ty.shape.values) - 1
    return mean.args[0] if [int(a) for a in mean.attrs.axis] in ([last], [-1]) else None


def _is_row(expr: Any, x: Any, scope: Scope) -> bool:
    """Whether it is known and has one element for each of x's last axis."""
    shape = expr.ty.shape.values
    is_known = is_constant(scope.value(expr)) and expr.ty.dtype == x.ty.dtype
    return is_known and len(shape) == 1 and bool(shape[0] == x.ty.shape.values[-1])


def _both_ways(call: Any) -> Iterator[tuple[Any, Any]]:
    left, right = call.args
    yield left, right
    yield right, left
