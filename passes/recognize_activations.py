"""x * sigmoid(x)                        ->  silu(x)
x * (1 + erf(x / sqrt 2)) * 1/2       ->  gelu(x)
x * clip(x + 3, 0, 6) * 1/6           ->  hardswish: `lbc.hardswish(x)`

Exporters spell activations out, with their factors in any order; a product is flattened and
compared as a set of factors and one number. What is recognized can be fused into a linear's
epilogue."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import scalar_of
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, rewrite

MULTIPLY, DIVIDE, ADD, ERF, SIGMOID, CLIP, MAXIMUM, MINIMUM = (
    tvm.ir.Op.get(f"relax.{name}")
    for name in ("multiply", "divide", "add", "erf", "sigmoid", "clip", "maximum", "minimum")
)
TOLERANCE = 1e-6  # constants arrive as decimal float32 literals


@dataclass(frozen=True)
class RecognizeActivations:
    name: ClassVar[str] = "recognize_activations"

    def __call__(self, model: Model) -> Model:
        def visit(call: Any, scope: Scope) -> Any:
            if call.op not in (MULTIPLY, DIVIDE):
                return None
            number, factors = _product(call, scope)
            if len(factors) != 2:
                return None
            for x, other in (factors, factors[::-1]):
                found = _activation(number, x, scope.value(other), scope)
                if found is not None:
                    return found
            return None

        return replace(model, module=rewrite(model.module, visit))


def _product(expr: Any, scope: Scope) -> tuple[float, list[Any]]:
    """(product of the constants, the other factors) of nested multiplications and divisions by
    constants.
    """
    call = scope.value(expr)
    if not isinstance(call, relax.Call) or call.op not in (MULTIPLY, DIVIDE):
        return 1.0, [expr]
    left, right = call.args
    constant = scalar_of(scope.value(right))
    if call.op == DIVIDE:
        if not constant:
            return 1.0, [expr]
        number, factors = _product(left, scope)
        return number / constant, factors
    if constant is None:
        constant, left, right = scalar_of(scope.value(left)), right, left
    if constant is not None:
        number, factors = _product(left, scope)
        return number * constant, factors
    (a, first), (b, second) = _product(left, scope), _product(right, scope)
    return a * b, first + second


def _activation(number: float, x: Any, other: Any, scope: Scope) -> Any:
    if not isinstance(other, relax.Call):
        return None
    if other.op == SIGMOID and _close(number, 1) and _same(other.args[0], x):
        return relax.op.nn.silu(x)
    if other.op == ADD and _close(number, 0.5) and _is_one_plus_erf(other, x, scope):
        return relax.op.nn.gelu(x)
    if _close(number, 1 / 6) and _is_relu6_of_x_plus_3(other, x, scope):
        return ops.hardswish(x)
    return None


def _is_one_plus_erf(add: Any, x: Any, scope: Scope) -> bool:
    for one, erf in (add.args, reversed(add.args)):
        call = scope.call_to(erf, ERF)
        if call is None or scalar_of(scope.value(one)) != 1.0:
            continue
        number, factors = _product(call.args[0], scope)
        return len(factors) == 1 and _same(factors[0], x) and _close(number, math.sqrt(0.5))
    return False


def _is_relu6_of_x_plus_3(clipped: Any, x: Any, scope: Scope) -> bool:
    inner, bounds = _clipped(clipped, scope)
    add = scope.call_to(inner, ADD)
    if bounds != {MAXIMUM: 0.0, MINIMUM: 6.0} or add is None:
        return False
    return any(
        _same(a, x) and scalar_of(scope.value(b)) == 3.0 for a, b in (add.args, reversed(add.args))
    )


def _clipped(call: Any, scope: Scope) -> tuple[Any, dict[Any, float]]:
    """(what is clipped, {MAXIMUM: low, MINIMUM: high}) of a clip, or of its two halves."""
    if call.op == CLIP:
        low, high = (float(bound.value) for bound in call.args[1:])
        return call.args[0], {MAXIMUM: low, MINIMUM: high}
    bounds: dict[Any, float] = {}
    expr: Any = call
    while isinstance(call, relax.Call) and call.op in (MAXIMUM, MINIMUM) and call.op not in bounds:
        bound = scalar_of(scope.value(call.args[1]))
        if bound is None:
            break
        bounds[call.op] = bound
        expr = call.args[0]
        call = scope.value(expr)
    return expr, bounds


def _same(a: Any, b: Any) -> bool:
    return bool(a.same_as(b))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=TOLERANCE)
