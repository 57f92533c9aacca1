"""Questions to and changes of TIR expressions: what they read, how they depend on a variable."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import sym, tirx
from tvm.ir import Call, TensorLoad

Expr = Any  # a tvm.tirx expression; TVM ships no type stubs


def same(a: Expr, b: Expr) -> bool:
    """Whether two expressions are the same text over the same variables."""
    return bool(tvm_ffi.structural_equal(a, b))


def provably_equal(a: Expr, b: Expr) -> bool:
    return same(a, b) or bool(sym.Analyzer().can_prove_equal(a, b))


def is_one(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == 1


def is_zero(value: Expr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == 0


def substitute(expr: Expr, values: Mapping[Any, Expr]) -> Expr:
    """The expression with variables replaced."""
    if not values:
        return expr
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))


def map_loads(expr: Expr, replacement: Callable[[Expr], Expr]) -> Expr:
    """The expression with each buffer load given to `replacement`, innermost first."""
    return tvm_ffi.structural_map(expr, (TensorLoad, replacement))


def loads_in(expr: Expr) -> list[Expr]:
    found: list[Expr] = []
    tvm_ffi.structural_walk(expr, (TensorLoad, lambda load: _keep(found, load)))
    return found


def variables_in(expr: Expr) -> set[Any]:
    found: list[Expr] = []
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda var: _keep(found, var)))
    return {var for var in found if not tirx.is_buffer_var(var)}


def calls_in(expr: Expr) -> list[Expr]:
    found: list[Expr] = []
    tvm_ffi.structural_walk(expr, (Call, lambda call: _keep(found, call)))
    return found


def op_name(call: Expr) -> str:
    """`exp` of a call of the operator `tirx.exp`."""
    return str(getattr(call.op, "name", "")).rpartition(".")[2]


def _keep(found: list[Expr], item: Expr) -> None:
    found.append(item)


def guarded_loads(expr: Expr) -> list[Expr]:
    """Loads that run only if a condition holds, and may be out of bounds otherwise."""
    found: list[Expr] = []
    for call in calls_in(expr):
        if op_name(call) == "if_then_else":
            for branch in call.args[1:]:
                found.extend(loads_in(branch))
    return found


def coefficient(expr: Expr, var: Any) -> Expr | None:
    """c in `expr = c * var + rest`, c and rest free of var; None where it has another form."""
    if expr.same_as(var):
        return tirx.const(1, var.ty.dtype)
    if var not in variables_in(expr):
        return tirx.const(0, var.ty.dtype)
    if isinstance(expr, tirx.Add | tirx.Sub):
        a, b = coefficient(expr.a, var), coefficient(expr.b, var)
        if a is None or b is None:
            return None
        return a + b if isinstance(expr, tirx.Add) else a - b
    if isinstance(expr, tirx.Mul):
        for factor, other in ((expr.a, expr.b), (expr.b, expr.a)):
            inner = coefficient(factor, var)
            if inner is not None and var not in variables_in(other):
                return inner * other
    return None


def flat_offset(shape: Sequence[Expr], indices: Sequence[Expr]) -> Expr:
    """The row-major position of `indices` in a buffer of `shape`."""
    offset: Expr = tirx.const(0, "int64")
    for extent, index in zip(shape, indices, strict=True):
        offset = offset * extent + index
    return offset
