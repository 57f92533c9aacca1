"""A tensor of heads as a view of an earlier one: what an attention can read in place.

Between a linear and the matmuls of an attention stand reshapes, transposes, slices of a stack of q,
k and v, repeats of shared heads and the scale. None of them computes anything but the scale; each
is peeled off while the axes keep their meaning: B batch, S position, H head, D number of a head,
and N for a stack (of q, k and v) of which one is taken.
"""

from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax

from lbcompiler.ir.constants import scalar_of
from lbcompiler.ir.rewrite import Scope

ANALYZER = tvm.sym.Analyzer()
LAYOUTS = ("BHSD", "BSHD", "SBHD")
(
    PERMUTE,
    RESHAPE,
    EXPAND_DIMS,
    SQUEEZE,
    BROADCAST,
    REPEAT,
    SLICE,
    MULTIPLY,
    DIVIDE,
) = (
    tvm.ir.Op.get(f"relax.{name}")
    for name in (
        *("permute_dims", "reshape", "expand_dims", "squeeze", "broadcast_to", "repeat"),
        *("strided_slice", "multiply", "divide"),
    )
)


@dataclass(frozen=True)
class HeadView:
    """`expr` with a letter for each axis; every head stands for `group`, and the numbers times
    `scale`; `taken` is the place in a stack N.
    """

    expr: Any
    axes: str
    scale: float = 1.0
    group: int = 1
    taken: int = 0

    def extent(self, axis: str) -> Any:
        return self.expr.ty.shape.values[self.axes.index(axis)]

    @property
    def heads(self) -> Any:
        """How many there are, repeated ones counted."""
        return self.extent("H") * self.group

    @property
    def is_readable(self) -> bool:
        """Whether it is in a layout of the attention, a stack counted to the heads."""
        if self.axes in LAYOUTS:
            return True
        is_static = all(isinstance(self.extent(a), tvm.tirx.IntImm) for a in "NH" if a in self.axes)
        return self.axes.replace("NH", "H") in LAYOUTS and is_static


def same(a: Any, b: Any) -> bool:
    """Whether two extents are provably equal."""
    return bool(ANALYZER.can_prove_equal(a, b))


def same_shape(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def shape_of(expr: Any) -> list[Any]:
    return list(expr.ty.shape.values)


def earliest(expr: Any, axes: str, scope: Scope, *, scaled: bool) -> HeadView:
    """The earliest readable tensor that `expr` is a view of (times a number, if `scaled`)."""
    view: HeadView | None = HeadView(expr, axes)
    best = None
    while view is not None:
        best = view if view.is_readable else best
        view = _before(view, scope, scaled)
    if best is not None:
        return best
    order = [axes.index(axis) for axis in LAYOUTS[0]]
    return HeadView(scope.emit(relax.op.permute_dims(expr, order)), LAYOUTS[0])


def _before(view: HeadView, scope: Scope, scaled: bool) -> HeadView | None:
    """The view without its last operation, None where that is no mere view."""
    call = scope.value(view.expr)
    if not isinstance(call, relax.Call):
        return None
    if call.op == PERMUTE:
        return _before_permute(view, call)
    if scaled and call.op in (MULTIPLY, DIVIDE):
        return _before_scale(view, call, scope)
    if view.group == 1 and "H" in view.axes:
        repeated = _before_repeat(view, call, scope)
        if repeated is not None:
            return repeated
    return _before_slice(view, call, scope)


def _before_permute(view: HeadView, call: Any) -> HeadView:
    rank = len(view.axes)
    order = range(rank)[::-1] if call.attrs.axes is None else [int(i) for i in call.attrs.axes]
    letters = dict(zip(order, view.axes, strict=True))
    return replace(view, expr=call.args[0], axes="".join(letters[i] for i in range(rank)))


def _before_scale(view: HeadView, call: Any, scope: Scope) -> HeadView | None:
    found = scalar_factor(call, scope)
    if found is None or len(shape_of(found[0])) != len(view.axes):
        return None
    return replace(view, expr=found[0], scale=view.scale * found[1])


def scalar_factor(call: Any, scope: Scope) -> tuple[Any, float] | None:
    """(x, number) of x * number or x / number, None for anything else."""
    if not isinstance(call, relax.Call) or call.op not in (MULTIPLY, DIVIDE):
        return None
    left, right = call.args
    number = scalar_of(scope.value(right))
    if number is not None:
        if call.op == MULTIPLY:
            return left, number
        return (left, 1 / number) if number else None
    number = scalar_of(scope.value(left))
    return None if number is None or call.op == DIVIDE else (right, number)


def _before_repeat(view: HeadView, call: Any, scope: Scope) -> HeadView | None:
    """Each head several times, next to one another."""
    at = view.axes.index("H")
    if call.op == REPEAT and call.attrs.axis is not None and int(call.attrs.axis) == at:
        return replace(view, expr=call.args[0], group=int(call.attrs.repeats))
    spread = scope.call_to(call.args[0], BROADCAST) if call.op == RESHAPE else None
    if spread is None:
        return None
    wide, narrow = shape_of(spread), shape_of(spread.args[0])
    if len(wide) != len(view.axes) + 1 or len(narrow) != len(wide):
        return None
    rest = [*wide[:at], wide[at] * wide[at + 1], *wide[at + 2 :]]
    group, once = wide[at + 1], [*wide[: at + 1], *wide[at + 2 :]]
    is_repeat = (
        isinstance(group, tvm.tirx.IntImm)
        and same_shape(rest, shape_of(call))
        and same(narrow[at + 1], 1)
        and same_shape([*narrow[: at + 1], *narrow[at + 2 :]], once)
    )
    if not is_repeat:
        return None
    source, inner = spread.args[0], scope.value(spread.args[0])
    if isinstance(inner, relax.Call) and inner.op in (RESHAPE, EXPAND_DIMS):
        source = inner.args[0]
    if not same_shape(shape_of(source), once):
        source = scope.emit(relax.op.reshape(spread.args[0], relax.ShapeExpr(once)))
    return replace(view, expr=source, group=int(group))


def _before_slice(view: HeadView, call: Any, scope: Scope) -> HeadView | None:
    """One of a stack: squeeze(strided_slice(stack, [i], [i + 1]))."""
    if call.op not in (SQUEEZE, RESHAPE) or "N" in view.axes:
        return None
    part = scope.call_to(call.args[0], SLICE)
    if part is None or len(shape_of(part)) != len(view.axes) + 1:
        return None
    numbers = [field for argument in part.args[1:] for field in argument.fields]
    if len(numbers) not in (3, 4) or not all(isinstance(n, tvm.tirx.IntImm) for n in numbers):
        return None
    at, begin, end, *steps = (int(n) for n in numbers)
    kept = shape_of(part)
    at %= len(kept)
    if steps not in ([], [1]) or end - begin != 1 or begin < 0:
        return None
    del kept[at]
    if not same_shape(kept, shape_of(call)):
        return None
    return replace(
        view,
        expr=part.args[0],
        axes=view.axes[:at] + "N" + view.axes[at:],
        taken=begin,
    )
