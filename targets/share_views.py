"""make_shape(h, ..) .. make_shape(h, ..)  ->  one of them, and so for alloc_tensor, reshape, view

The last pass but one before code: what the virtual machine does between kernels. The memory plan
gives the tensors of thirty equal layers the same few storages, so most tensors are a storage under
a shape that was seen before: the same bytes, described again. A description has no content of its
own, and which kernel writes when is the plan's matter, so equal ones are made once, and what is
only another name for one, or a tuple that is taken apart again, is not made at all."""

from collections.abc import Hashable, Sequence
from typing import Any

import tvm
from tvm import relax

from lbcompiler.ir.rewrite import bindings, operands, substitute

DESCRIBES = {
    "relax.null_value",
    "relax.vm.alloc_tensor",
    "runtime.TVMTensorCreateView",
    "vm.builtin.make_prim_value",
    "vm.builtin.make_shape",
    "vm.builtin.reshape",
}


def share_views(module: Any) -> Any:
    """The module after VMShapeLower, whose functions are straight-line code."""
    shared = module.clone()
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            shared.update_func(variable, _shared(function))
    return shared


def _shared(function: Any) -> Any:
    made: dict[Hashable, Any] = {}
    same: dict[Any, Any] = {}
    fields: dict[Any, Sequence[Any]] = {}
    kept = []
    for binding in bindings(function):
        if isinstance(binding, relax.MatchCast):
            kept.append(relax.MatchCast(binding.var, substitute(binding.value, same), binding.ty))
            continue
        value = substitute(binding.value, same)
        if isinstance(value, relax.TupleGetItem) and value.tuple_value in fields:
            value = fields[value.tuple_value][value.index]
        if isinstance(value, relax.Tuple):
            fields[binding.var] = value.fields
        key = _description(value)
        if isinstance(value, relax.Var):
            same[binding.var] = value
        elif key is not None and key in made:
            same[binding.var] = made[key]
        else:
            kept.append(relax.VarBinding(binding.var, value))
            made.update({} if key is None else {key: binding.var})
    result = substitute(function.body.body, same)
    body = relax.SeqExpr([relax.BindingBlock(_read(kept, result))], result)
    return relax.Function(
        function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
    )


def _read(kept: Sequence[Any], result: Any) -> list[Any]:
    """The bindings but for tuples and descriptions that nobody reads."""
    used = {expr for expr in operands(result) if isinstance(expr, relax.Var)}
    needed = []
    for binding in reversed(kept):
        value = binding.value
        is_idle = isinstance(value, relax.Tuple) or _description(value) is not None
        if is_idle and binding.var not in used:
            continue
        used.update(expr for expr in operands(value) if isinstance(expr, relax.Var))
        needed.append(binding)
    return needed[::-1]


def _description(value: Any) -> Hashable | None:
    """What a step makes, equal for equal things; None for a step that does something."""
    if not isinstance(value, relax.Call):
        return None
    is_packed = isinstance(value.op, relax.ExternFunc)
    name = str(value.op.global_symbol if is_packed else getattr(value.op, "name", ""))
    if name not in DESCRIBES:
        return None
    return name, *(arg if isinstance(arg, relax.Var) else str(arg) for arg in value.args)


ShareViews = tvm.transform.module_pass(
    lambda module, _: share_views(module), opt_level=0, name="ShareViews"
)
