"""exp, log, erf, tanh, sigmoid and simple powers -> straight-line arithmetic that vectorizes."""

from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from lbcompiler.targets.cpu.schedule.expressions import Expr, op_name
from lbcompiler.targets.cpu.vector_math import (
    vector_erf,
    vector_exp,
    vector_log,
    vector_sigmoid,
    vector_tanh,
)

FORMS = {
    "exp": vector_exp,
    "log": vector_log,
    "erf": vector_erf,
    "tanh": vector_tanh,
    "sigmoid": vector_sigmoid,
}


def _power(base: Expr, exponent: float) -> Expr | None:
    """base^exponent by multiplication or square root, for the exponents that models use."""
    x = tirx.Var("base", base.ty)
    one = tirx.const(1.0, base.ty.dtype)
    forms = {
        1.0: lambda: x,
        2.0: lambda: x * x,
        3.0: lambda: x * x * x,
        4.0: lambda: (x * x) * (x * x),
        -1.0: lambda: one / x,
        -2.0: lambda: one / (x * x),
        0.5: lambda: tirx.sqrt(x),
        -0.5: lambda: one / tirx.sqrt(x),
    }
    return tirx.Let(x, base, forms[exponent]()) if exponent in forms else None


def _replaced(call: Expr) -> Expr:
    name = op_name(call)
    if name not in FORMS and name != "pow":
        return call
    if not str(call.ty.dtype).startswith("float32"):
        return call
    if name in FORMS:
        return FORMS[name](call.args[0])
    if name == "pow" and isinstance(call.args[1], tirx.FloatImm):
        power = _power(call.args[0], float(call.args[1].value))
        return call if power is None else power
    return call


def use_vector_math(function: Any) -> Any:
    """The PrimFunc with these calls replaced."""
    return function.with_body(tvm_ffi.structural_map(function.body, (Call, _replaced)))
