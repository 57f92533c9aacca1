"""The mask of a causal attention, proven to be one: a comparison of positions made a number.

    0 where key position <= query position, at most half of the lowest float32 where it is later

In float32 no score of less than 10^38 brings such a key back: its weight is exactly 0. A query sees
the key at its own position and all before, and the last query the last key, so that every query
sees one at least.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir.constants import scalar_of
from lbcompiler.ir.rewrite import Scope
from lbcompiler.passes.head_views import ANALYZER, same, scalar_factor, shape_of

LOWEST = float(np.finfo(np.float32).min)
BARRED = LOWEST / 2
ASTYPE, WHERE, NOT, ARANGE, ADD, EXTENTS = (
    tvm.ir.Op.get(f"relax.{name}")
    for name in ("astype", "where", "logical_not", "arange", "add", "shape_to_tensor")
)
VIEWS = tuple(
    tvm.ir.Op.get(f"relax.{name}") for name in ("reshape", "expand_dims", "squeeze", "broadcast_to")
)
COMPARISONS = {  # key ? query: whether it says "seen", or "barred"
    "relax.less_equal": True,
    "relax.greater": False,
}
MIRRORED = {"relax.greater_equal": "relax.less_equal", "relax.less": "relax.greater"}


@dataclass(frozen=True)
class _Positions:
    """start, start + 1, .. along one axis of a tensor, counted from its last: -1 or -2."""

    axis: int | None  # None: one position, on whichever axis
    start: Any


def is_causal_mask(mask: Any, scores: list[Any], scope: Scope) -> bool:
    """Whether `mask`, to be added to scores of shape (.., queries, keys), bars just the later
    keys.
    """
    mask = _through_views(mask, scope)
    if not isinstance(mask, relax.Call):
        return False
    if mask.op == WHERE:
        condition, *values = mask.args
        seen = sees_past(condition, scores, scope)
        kept, barred = (scalar_of(scope.value(v)) for v in (values if seen else values[::-1]))
        return seen is not None and kept == 0 and barred is not None and barred <= BARRED
    factor = scalar_factor(mask, scope)
    if factor is None or not (-np.inf < factor[1] <= BARRED):  # 0 * -inf would be NaN
        return False
    cast = _through_views(factor[0], scope)
    if not isinstance(cast, relax.Call) or cast.op != ASTYPE:
        return False
    return sees_past(cast.args[0], scores, scope) is False


def sees_past(condition: Any, scores: list[Any], scope: Scope) -> bool | None:
    """True where a boolean of scores (.., queries, keys) holds for just the keys that a causal
    attention sees, False where for just the others, None where that is not proven.
    """
    call = _through_views(condition, scope)
    if not isinstance(call, relax.Call):
        return None
    if call.op == NOT:
        inner = sees_past(call.args[0], scores, scope)
        return None if inner is None else not inner
    name, sides = getattr(call.op, "name", ""), list(call.args)
    if name in MIRRORED:
        name, sides = MIRRORED[name], sides[::-1]
    if name not in COMPARISONS:
        return None
    shape, (queries, keys) = shape_of(call), scores[-2:]
    is_table = len(shape) >= 2 and same(shape[-2], queries) and same(shape[-1], keys)
    if not is_table or not all(same(extent, 1) for extent in shape[:-2]):
        return None
    key, query = (_positions(side, scope) for side in sides)
    if key is None or query is None or key.axis not in (-1, None) or query.axis not in (-2, None):
        return None
    if not same(query.start - key.start, keys - queries) or not _never_fewer(keys, queries):
        return None
    return COMPARISONS[name]


def _never_fewer(keys: Any, queries: Any) -> bool:
    """Whether there are always as many keys as queries, every dimension being 0 or more."""
    difference = ANALYZER.simplify(keys - queries)
    is_extent = isinstance(difference, tvm.tirx.Var)
    return is_extent or bool(ANALYZER.can_prove(difference >= 0))


def _positions(expr: Any, scope: Scope) -> _Positions | None:
    """The axis along which a comparison's operand counts, and from where."""
    shape = shape_of(expr)
    long = [i - len(shape) for i, extent in enumerate(shape) if not same(extent, 1)]
    found = _through_views(expr, scope)
    start: Any = tvm.tirx.const(0, "int64")
    while isinstance(found, relax.Call) and found.op == ADD:  # past + position
        moved = _moved(found, scope)
        if moved is None:
            return None
        start, found = start + moved[1], _through_views(moved[0], scope)
    if not isinstance(found, relax.Call) or found.op != ARANGE or len(long) > 1:
        return None
    first, _, step = found.args
    extent = shape[long[0]] if long else 1
    if not same(step, 1) or not same(shape_of(found)[0], extent):
        return None
    return _Positions(long[0] if long else None, start + first)


def _moved(add: Any, scope: Scope) -> tuple[Any, Any] | None:
    """(x, number) of x + number, which may be an extent."""
    for x, other in (add.args, reversed(add.args)):
        found = _through_views(other, scope)
        number = scalar_of(found)
        if number is not None:
            return x, tvm.tirx.const(int(number), "int64")
        if not isinstance(found, relax.Call) or found.op != EXTENTS:
            continue
        extents = scope.value(found.args[0])
        if isinstance(extents, relax.ShapeExpr) and len(extents.values) == 1:
            return x, extents.values[0]
    return None


def _through_views(expr: Any, scope: Scope) -> Any:
    """The call behind reshapes, new axes and broadcasts; none of them moves a position from its
    axis, for the extents of the last two are looked at by the caller.
    """
    call = scope.value(expr)
    while isinstance(call, relax.Call) and call.op in VIEWS:
        call = scope.value(call.args[0])
    return call
