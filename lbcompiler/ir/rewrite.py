"""The one way a pass rewrites `main`: every call, in order of execution, may become another
expression.

After the visit, what nobody uses any more is removed and bindings are put into canonical form, so a
pass never cleans up by itself."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

Visit = Callable[[Any, "Scope"], Any]


class Scope:
    """What a rewrite may ask: the value behind a variable, how often it is used, and where to emit."""

    def __init__(self, mutator: Any, uses: Counter[str]) -> None:
        self._mutator = mutator
        self._uses = uses
        self.builder = mutator.builder_

    def value(self, expr: Any) -> Any:
        """The expression bound to a variable, followed through copies; the expression itself
        otherwise.
        """
        while isinstance(expr, relax.Var):
            bound = self._mutator.lookup_binding(expr)
            if bound is None:
                return expr
            expr = bound
        return expr

    def call_to(self, expr: Any, op: Any) -> Any:
        """The call of `op` behind `expr`, or None."""
        found = self.value(expr)
        return found if isinstance(found, relax.Call) and found.op == op else None

    def is_used_once(self, expr: Any) -> bool:
        """Whether the variable has one use before this rewrite; where two share a name, not."""
        return isinstance(expr, relax.Var) and self._uses[expr.name] == 1

    def emit(self, expr: Any, name: str = "") -> Any:
        return self.builder.emit(expr, name)


def count_uses(func: Any) -> Counter[str]:
    """How often each variable is read, by name (names are unique but for what passes emit)."""
    uses: Counter[str] = Counter()

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Var):
            uses[expr.name] += 1

    for block in func.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, visit)
    relax.analysis.post_order_visit(func.body.body, visit)
    return uses


@mutator
class _Rewriter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: Any, visit: Visit, uses: Counter[str]) -> None:
        super().__init__(module)
        self.visit = visit
        self.uses = uses

    def visit_call_(self, op: Any) -> Any:
        call = self.visit_expr_post_order(op)
        replaced = self.visit(call, Scope(self, self.uses))
        return call if replaced is None else replaced


def rewrite(module: Any, visit: Visit) -> Any:
    """`module` with each call of `main` replaced by `visit(call, scope)`, or kept where that is
    None.

    A visit may add functions with `scope.builder.add_func`.
    """
    rewriter = _Rewriter(module, visit, count_uses(module["main"]))
    main = rewriter.visit_expr(module["main"])
    rewriter.builder_.update_func(module.get_global_var("main"), main)
    return tidy(rewriter.builder_.get())


def tidy(module: Any) -> Any:
    """Copies followed, dead bindings removed."""
    return tvm.transform.Sequential(
        [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()]
    )(module)


def calls(module: Any) -> list[Any]:
    """Every bound call of `main`, in order."""
    found = []
    for block in module["main"].body.blocks:
        found += [b.value for b in block.bindings if isinstance(b.value, relax.Call)]
    return found
