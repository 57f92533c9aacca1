"""attention(q, k, v[, mask])  ->  softmax(q k^T * scale [+ mask]) v in three kernels, float32,
for heads that are too long for the one of `attention_fused.py`

    scores (B, H, Q, K)    weights = softmax over K    out (B, Q, H, D)

A query whose every score is -inf gets NaN, as softmax has it.
"""

from typing import Any

from tvm import te, tirx, topi

from lbcompiler.targets.cpu.attention_operands import Attention
from lbcompiler.targets.cpu.legalization import Builder
from lbcompiler.targets.cpu.lower_attention import described

Expr = Any


def legalize_attention(builder: Builder, call: Any) -> Any:
    what = described(call)
    q, k, v, *mask = call.args
    found = builder.emit(
        builder.call_te(
            lambda *args: scores(what, *args), q, k, *mask, primfunc_name_hint="attention_scores"
        )
    )
    weights = builder.emit(builder.call_te(topi.nn.softmax, found, primfunc_name_hint="softmax"))
    return builder.call_te(
        lambda *args: values(what, *args), weights, v, primfunc_name_hint="attention_values"
    )


def _extents(layout: str, tensor: Any) -> tuple[Expr, Expr]:
    """(batch, positions)."""
    return tensor.shape[layout.index("B")], tensor.shape[layout.index("S")]


def scores(what: Attention, q: Any, k: Any, mask: Any = None) -> Any:
    """The tensor expression (B, H, Q, K)."""
    batch, queries = _extents(what.q.layout, q)
    _, keys = _extents(what.k.layout, k)
    d = te.reduce_axis((0, what.depth), "d")
    shape = (batch, what.q.count, queries, keys)

    def product(b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        left = q[(*what.q.row(b, i, h), d)]
        right = k[(*what.k.row(b, j, tirx.floordiv(h, what.group)), d)]
        return te.sum(left * right, axis=[d])

    products = te.compute(shape, product, "products")

    def score(b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        x = products[b, h, i, j] * tirx.const(what.scale, "float32")
        if mask is not None:
            axes = zip("BHQK", (b, h, i, j), strict=True)
            x = x + mask[tuple(at if axis in (what.mask or "") else 0 for axis, at in axes)]
        if what.causal:
            x = tirx.Select(j <= i + (keys - queries), x, tirx.const(float("-inf"), "float32"))
        return x

    return te.compute(shape, score, "scores")


def values(what: Attention, weights: Any, v: Any) -> Any:
    """The tensor expression (B, Q, H, D) of weights (B, H, Q, K)."""
    batch, _, queries, keys = weights.shape
    j = te.reduce_axis((0, keys), "j")

    def product(b: Expr, i: Expr, h: Expr, e: Expr) -> Expr:
        right = v[(*what.v.row(b, j, tirx.floordiv(h, what.group)), e)]
        return te.sum(weights[b, h, i, j] * right, axis=[j])

    return te.compute((batch, queries, what.q.count, what.value_depth), product, "values")
