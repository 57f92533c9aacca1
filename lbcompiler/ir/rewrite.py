"""The one way a pass rewrites `main`: every call, in order, may become another expression.

`main` is straight-line code, so a rewrite is a walk over its bindings that emits them anew. Copies
are followed and what nobody reads any more is removed, so a pass never cleans up by itself. (TVM's
CanonicalizeBindings would do it too, but never returns where a `match_cast` equates a dimension
with an expression of itself, such as min(length, 1024).)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GenericConst as Constant

Visit = Callable[[Any, "Scope"], Any]
Leave = Callable[[Any, "Scope"], Any]
Cast = Callable[[Any, Any, "Scope"], Any]


class Scope:
    """What a rewrite may ask: the value behind a variable, how often it is read, where to emit.

    `variable` is the one of the given module whose call is visited, `moved` what has become of an
    expression of that module.
    """

    def __init__(self, builder: Any, uses: Counter[str], new: dict[Any, Any]) -> None:
        self.builder = builder
        self.variable: Any = None
        self._new = new
        self._uses = uses
        self._bound: dict[Any, Any] = {}  # variable -> the expression it is bound to

    def moved(self, expr: Any) -> Any:
        """An expression over earlier variables of the given module, over those of the new one."""
        return substitute(expr, self._new)

    def value(self, expr: Any) -> Any:
        """The expression a variable is bound to; the expression itself where it is none."""
        return self._bound.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def call_to(self, expr: Any, op: Any) -> Any:
        """The call of `op` behind `expr`, or None."""
        found = self.value(expr)
        return found if isinstance(found, relax.Call) and found.op == op else None

    def is_used_once(self, expr: Any) -> bool:
        """Whether the variable is read once before this rewrite; where two share a name, not."""
        return isinstance(expr, relax.Var) and self._uses[expr.name] == 1

    def emit(self, expr: Any, name: str = "") -> Any:
        """A variable bound to `expr`; variables, constants, known tuples' items as they are."""
        if isinstance(expr, relax.TupleGetItem):
            fields = self.value(expr.tuple_value)
            expr = fields.fields[expr.index] if isinstance(fields, relax.Tuple) else expr
        if isinstance(expr, (relax.Var, Constant)):
            return expr
        return self.bind(self.builder.emit(expr, name))

    def bind(self, var: Any) -> Any:
        """Remember what the builder bound to `var`."""
        self._bound[var] = self.builder.lookup_binding(var)
        return var

    def cast(self, value: Any, ty: Any) -> Any:
        """A `match_cast`: a variable of that type, whose value is `value`."""
        var = self.builder.match_cast(value, ty)
        self._bound[var] = value
        return var


def rewrite(
    module: Any,
    visit: Visit,
    params: tuple[Any, ...] = (),
    *,
    replaced: Mapping[Any, Any] | None = None,
    leave: Leave | None = None,
    cast: Cast | None = None,
) -> Any:
    """`module` with each call of `main` replaced by `visit(call, scope)`, kept where it is None.

    A visit may add functions with `scope.builder.add_func`; `params` are added to those of `main`,
    and one that is a key of `replaced` gives its place to another: no visit may leave a use of it.
    `leave(results, scope)` may return other results; `cast(value, type, scope)` stands for a
    `match_cast`, which is kept where it is None.
    """
    main = module["main"]
    others = {var: func for var, func in module.functions.items() if var.name_hint != "main"}
    builder = relax.BlockBuilder(tvm.IRModule(others, attrs=module.attrs))
    new: dict[Any, Any] = {}
    scope = Scope(builder, count_uses(main), new)
    given = [param if replaced is None else replaced.get(param, param) for param in main.params]
    with builder.function("main", [*given, *params], attrs=dict(main.attrs or {})):
        with builder.dataflow():
            for binding in bindings(main):
                new[binding.var] = _emit(
                    binding, substitute(binding.value, new), visit, scope, cast
                )
            results = substitute(main.body.body, new)
            out = builder.emit_output(results if leave is None else leave(results, scope))
        builder.emit_func_output(out)
    return relax.transform.DeadCodeElimination()(builder.get())


def _emit(binding: Any, value: Any, visit: Visit, scope: Scope, cast: Cast | None) -> Any:
    if isinstance(binding, relax.MatchCast):
        moved = None if cast is None else cast(value, binding.ty, scope)
        return scope.cast(value, binding.ty) if moved is None else scope.emit(moved)
    if not isinstance(value, relax.Call):
        return scope.emit(value, binding.var.name)
    call = scope.builder.normalize(value)  # with its type, which a substituted call lost
    scope.variable = binding.var
    replaced = visit(call, scope)
    return scope.emit(call if replaced is None else replaced, binding.var.name)


def substitute(expr: Any, new: dict[Any, Any]) -> Any:
    """`expr` over the new variables; the same object where nothing changed."""
    if isinstance(expr, relax.Var):
        return new.get(expr, expr)
    if isinstance(expr, relax.Call):
        args = [substitute(arg, new) for arg in expr.args]
        same = all(a.same_as(b) for a, b in zip(args, expr.args, strict=True))
        return expr if same else relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(field, new) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, new), expr.index)
    return expr


def bindings(func: Any) -> Iterator[Any]:
    for block in func.body.blocks:
        yield from block.bindings


def calls(module: Any) -> list[Any]:
    """Every bound call of `main`, in order."""
    return [b.value for b in bindings(module["main"]) if isinstance(b.value, relax.Call)]


def count_uses(func: Any) -> Counter[str]:
    """How often each variable is read, by name (names are unique but for what passes emit)."""
    uses: Counter[str] = Counter()
    for value in [*(binding.value for binding in bindings(func)), func.body.body]:
        uses.update(expr.name for expr in operands(value) if isinstance(expr, relax.Var))
    return uses


def operands(expr: Any) -> Iterator[Any]:
    """The leaves of an expression: calls of variables, tuples of them, tuple items."""
    if isinstance(expr, relax.Call):
        nested = expr.args
    elif isinstance(expr, relax.Tuple):
        nested = expr.fields
    elif isinstance(expr, relax.TupleGetItem):
        nested = [expr.tuple_value]
    else:
        yield expr
        return
    for operand in nested:
        yield from operands(operand)
