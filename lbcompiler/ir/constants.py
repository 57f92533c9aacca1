"""Values known at compile time: Relax constants and entries of the weight table."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst as Constant

from lbcompiler.ir import ops
from lbcompiler.ir.model import Array, Weight, fresh
from lbcompiler.ir.rewrite import Scope

__all__ = ["Constant", "constant_of", "is_constant", "mapped", "scalar_of"]


def constant_of(expr: Any, weights: Mapping[str, Weight]) -> Array | None:
    """The numbers behind a constant or an `lbc.weight` (loaded), None for anything else."""
    if isinstance(expr, Constant):
        return np.asarray(expr.value.numpy())
    if ops.is_call_to(expr, ops.WEIGHT):
        return weights[str(expr.attrs["name"])].load()
    return None


def is_constant(expr: Any) -> bool:
    return isinstance(expr, Constant) or ops.is_call_to(expr, ops.WEIGHT)


def scalar_of(expr: Any) -> float | None:
    """The number behind a constant of one element, None for anything else."""
    if not isinstance(expr, Constant) or int(np.prod(expr.value.shape)) != 1:
        return None
    return float(expr.value.numpy().reshape(()))


def mapped(
    expr: Any,
    kind: str,
    fn: Callable[[Array], Array],
    scope: Scope,
    weights: dict[str, Weight],
    shape: tuple[int, ...] | None = None,
) -> Any:
    """fn of a constant's numbers, of `shape` where that is another: of a weight when it is loaded,
    in the table as `<name>.<kind>`."""
    value = scope.value(expr)
    if isinstance(value, Constant):
        return scope.emit(relax.const(np.ascontiguousarray(fn(value.value.numpy()))))
    source = str(value.attrs["name"])
    name = fresh(weights, f"{source}.{kind}")
    weights[name] = weights[source].map(shape or weights[source].shape, fn)
    return scope.emit(ops.weight(name, weights[name].shape))
