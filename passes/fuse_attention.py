"""matmul(softmax(matmul(q, permute_dims(k)) * scale + mask), v)
                        ->  permute_dims(attention(q', k', v'[, mask]; scale, causal, ...))
permute_dims(permute_dims(x))  ->  x    where nothing moves in the end; reshape(reshape(x)) likewise

q', k' and v' are the earliest tensors that q, k and v are views of (`head_views`): transposes,
repeats of heads and a factor on q or k go into the attention. The scale may stand on either side of
the matmul; a mask is a float32 tensor with an extent of 1 or that of the scores on each axis, and
one that is provably causal (`causal_masks`) becomes a flag. Scores or weights that are read by
anything else stay, and so does everything whose extents are not provably those of an attention."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import scalar_of
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.rewrite import Scope, calls, rewrite
from lbcompiler.passes.causal_masks import BARRED, WHERE, is_causal_mask, sees_past
from lbcompiler.passes.head_views import (
    PERMUTE,
    RESHAPE,
    HeadView,
    earliest,
    same,
    same_shape,
    scalar_factor,
    shape_of,
)

MATMUL, SOFTMAX, ADD = (tvm.ir.Op.get(f"relax.{n}") for n in ("matmul", "nn.softmax", "add"))


@dataclass(frozen=True)
class FuseAttention:
    name: ClassVar[str] = "fuse_attention"

    def __call__(self, model: Model) -> Model:
        fusion = _Fusion()
        module = rewrite(model.module, fusion.visit)
        layers = _noted(model, fusion.matmuls, fusion.fused)
        return replace(model, module=module, layers=layers)


@dataclass(frozen=True)
class _Scores:
    """matmul(q, k) * scale + mask."""

    matmul: Any
    scale: float = 1.0
    causal: bool = False
    mask: Any = None


class _Fusion:
    def __init__(self) -> None:
        self.matmuls: list[Any] = []  # in their order
        self.fused: list[int] = []  # the places of those that became part of an attention

    def visit(self, call: Any, scope: Scope) -> Any:
        if call.op in (PERMUTE, RESHAPE):
            return _undone(call, scope)
        if call.op != MATMUL:
            return None
        self.matmuls.append(call)
        scores = _scores_of(call, scope)
        attention = None if scores is None else _attention(scores, call, scope)
        if scores is None or attention is None:
            return None
        self.fused.append(len(self.matmuls) - 1)
        same_args = [_is_same_call(scores.matmul, earlier) for earlier in self.matmuls]
        self.fused.append(same_args.index(True))
        return attention


def _is_same_call(a: Any, b: Any) -> bool:
    return all(x.same_as(y) for x, y in zip(a.args, b.args, strict=True))


def _undone(call: Any, scope: Scope) -> Any:
    """x of two transposes, or two reshapes, that leave it as it was."""
    inner = scope.call_to(call.args[0], call.op)
    if inner is None:
        return None
    if call.op == RESHAPE:
        is_undone = same_shape(shape_of(inner.args[0]), shape_of(call))
    else:
        first, second = _order(inner), _order(call)
        is_undone = [first[i] for i in second] == list(range(len(first)))
    return inner.args[0] if is_undone else None


def _order(permute: Any) -> list[int]:
    rank = len(shape_of(permute))
    axes = permute.attrs.axes
    return list(range(rank))[::-1] if axes is None else [int(i) for i in axes]


def _scores_of(values: Any, scope: Scope) -> _Scores | None:
    """What the weights of matmul(weights, v) are the softmax of."""
    softmax = scope.call_to(values.args[0], SOFTMAX)
    if softmax is None or not scope.is_used_once(values.args[0]) or len(shape_of(softmax)) != 4:
        return None
    if int(softmax.attrs.axis) not in (-1, 3) or str(softmax.ty.dtype) != "float32":
        return None
    return _peeled(softmax.args[0], shape_of(softmax), scope)


def _peeled(expr: Any, shape: list[Any], scope: Scope) -> _Scores | None:
    """`expr` as scores of that shape; None where it is something else, or used elsewhere."""
    call = scope.value(expr)
    is_scores = isinstance(call, relax.Call) and scope.is_used_once(expr)
    if not is_scores or not same_shape(shape_of(call), shape):
        return None
    if call.op == MATMUL:
        return _Scores(call)
    if call.op == ADD:
        for inner, mask in (call.args, reversed(call.args)):
            scores = _peeled(inner, shape, scope)
            if scores is not None:
                return _with_mask(scores, mask, shape, scope)
        return None
    if call.op == WHERE:
        return _with_condition(call, shape, scope)
    factor = scalar_factor(call, scope)
    scores = None if factor is None else _peeled(factor[0], shape, scope)
    if factor is None or scores is None or scores.causal or scores.mask is not None:
        return None  # a scale behind the mask would scale the mask
    return replace(scores, scale=scores.scale * factor[1])


def _with_mask(scores: _Scores, mask: Any, shape: list[Any], scope: Scope) -> _Scores | None:
    if not scores.causal and is_causal_mask(mask, shape, scope):
        return replace(scores, causal=True)
    extents = shape_of(mask)
    is_broadcast = len(extents) <= 4 and all(
        same(extent, 1) or same(extent, full)
        for extent, full in zip(reversed(extents), reversed(shape), strict=False)
    )
    if scores.mask is not None or str(mask.ty.dtype) != "float32" or not is_broadcast:
        return None
    return replace(scores, mask=mask)


def _with_condition(where: Any, shape: list[Any], scope: Scope) -> _Scores | None:
    """where(seen, scores, lowest) or where(barred, lowest, scores), causal."""
    condition, *sides = where.args
    seen = sees_past(condition, shape, scope)
    inner, other = sides if seen else sides[::-1]
    lowest = scalar_of(scope.value(other))
    if seen is None or lowest is None or lowest > BARRED:
        return None
    scores = _peeled(inner, shape, scope)
    return None if scores is None or scores.causal else replace(scores, causal=True)


def _attention(scores: _Scores, values: Any, scope: Scope) -> Any:
    """The attention in the axes that `values` has, None where it is none."""
    batch, heads, queries, keys = shape_of(values.args[0])
    q, k = scores.matmul.args
    v = values.args[1]
    if any(len(shape_of(x)) != 4 for x in (q, k, v)):
        return None
    views = [
        earliest(q, "BHSD", scope, scaled=True),
        earliest(k, "BHDS", scope, scaled=True),
        earliest(v, "BHSD", scope, scaled=False),
    ]
    if not _is_attention(views, batch, heads, queries, keys):
        return None
    key_heads = int(views[1].extent("H"))
    mask = scores.mask
    if mask is not None and len(shape_of(mask)) < 4:
        ones = [1] * (4 - len(shape_of(mask)))
        mask = scope.emit(relax.op.reshape(mask, [*ones, *shape_of(mask)]))
    operands = [_readable(view, scope) for view in views]
    q, k, v = (operand.expr for operand in operands)
    fused = ops.attention(
        q,
        k,
        v,
        mask,
        heads=int(heads),
        key_heads=key_heads,
        scale=scores.scale * views[0].scale * views[1].scale,
        causal=scores.causal,
        layouts=[operand.axes for operand in operands],
        first_heads=[operand.taken for operand in operands],
    )
    return relax.op.permute_dims(scope.emit(fused), [0, 2, 1, 3])


def _is_attention(views: list[HeadView], batch: Any, heads: Any, queries: Any, keys: Any) -> bool:
    q, k, v = views
    static = [view.extent(axis) for view in views for axis in "HD"]
    if not all(isinstance(extent, tvm.tirx.IntImm) for extent in static):
        return False
    return (
        all(same(view.extent("B"), batch) and same(view.heads, heads) for view in views)
        and all(str(view.expr.ty.dtype) == "float32" for view in views)
        and q.group == 1
        and k.group == v.group
        and same(q.extent("S"), queries)
        and same(k.extent("S"), keys)
        and same(v.extent("S"), keys)
        and same(q.extent("D"), k.extent("D"))
    )


def _readable(view: HeadView, scope: Scope) -> HeadView:
    """The view in one of the layouts, `taken` being its first head: a stack is more heads."""
    if "N" not in view.axes:
        return view
    at, heads = view.axes.index("N"), int(view.extent("H"))
    shape = shape_of(view.expr)
    merged = [*shape[:at], shape[at] * heads, *shape[at + 2 :]]
    expr = scope.emit(relax.op.reshape(view.expr, merged))
    return replace(view, expr=expr, axes=view.axes.replace("N", ""), taken=view.taken * heads)


def _noted(model: Model, matmuls: list[Any], fused: list[int]) -> dict[str, Layer]:
    """The layers, with those matmuls that are in an attention now saying so.

    Relax matmuls carry no names. Where there are as many as layers that no call names, they are
    those layers, in the same order; else none is told apart."""
    named = {
        str(call.attrs["layer"]) for call in calls(model.module) if call.op in (ops.DENSE, ops.CONV)
    }
    unnamed = [name for name in model.layers if name not in named]
    layers = dict(model.layers)
    if len(unnamed) == len(matmuls):
        for name in (unnamed[place] for place in fused):
            layer = layers[name]
            layers[name] = replace(layer, reason=f"{layer.reason}; part of a fused attention")
    return layers
