"""Reductions along axes, positions of extremes, running sums, the largest k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Expr, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_move import arange, axes_of, fill
from lbcompiler.frontend.shapes import is_known

op = relax.op
Reduce = Callable[[Expr, list[int], bool], Expr]


def _reduction(
    fn: Reduce, empty: float, elementwise: Callable[[Expr], Expr] | None = None
) -> Converter:
    """A reduction; `empty` is its result over nothing, `elementwise` what it does to one
    element."""

    def convert(graph: Graph, node: Node) -> Value:
        x = graph.tensor(node[0])
        axes = axes_of(graph, node, len(x.shape))
        if not axes and not node.attribute("noop_with_empty_axes", 0):
            axes = list(range(len(x.shape)))
        if not axes:
            return graph.emit(elementwise(x.expr)) if elementwise else x
        keep = bool(node.attribute("keepdims", 1))
        if any(is_known(x.shape[axis]) and x.shape[axis] == 0 for axis in axes):
            shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
            kept = [size for axis, size in enumerate(shape) if keep or axis not in axes]
            return fill(graph, kept, _finite(empty, x.dtype), x.dtype)
        return graph.emit(fn(x.expr, axes, keep))

    return convert


def _finite(number: float, dtype: str) -> float:
    """An infinity as the end of an integer type."""
    if dtype == "float32" or math.isfinite(number):
        return number
    limits = np.iinfo(dtype)
    return int(limits.max if number > 0 else limits.min)


def _log_sum_exp(x: Expr, axes: list[int], keep: bool) -> Expr:
    """Shifted by the maximum: exp does not overflow."""
    top = op.max(x, axes, True)
    total = op.log(op.sum(op.exp(op.subtract(x, top)), axes, True))
    out = op.add(total, top)
    return out if keep else op.squeeze(out, axes)


def _largest(x: Expr, axes: list[int], keep: bool) -> Expr:
    """TVM's max starts at the smallest finite float: the largest of -inf alone is put right."""
    return _or_infinite(op.max, x, axes, keep, -math.inf)


def _smallest(x: Expr, axes: list[int], keep: bool) -> Expr:
    return _or_infinite(op.min, x, axes, keep, math.inf)


def _or_infinite(fn: Reduce, x: Expr, axes: list[int], keep: bool, infinite: float) -> Expr:
    out = fn(x, axes, keep)
    if str(x.ty.dtype) != "float32":
        return out
    limit = relax.const(np.float32(infinite), "float32")
    some = op.max(op.astype(op.not_equal(x, limit), "int8"), axes, keep)
    return op.where(op.greater(some, relax.const(np.int8(0), "int8")), out, limit)


def _as_integers(fn: Reduce, empty: float) -> Converter:
    """Max and min of bool go through int8."""
    plain = _reduction(fn, empty)

    def convert(graph: Graph, node: Node) -> Value:
        if node[0].dtype != "bool":
            return plain(graph, node)  # type: ignore[return-value]
        numbers = graph.emit(op.astype(graph.expr(node[0]), "int8"))
        inner = Node(**{**vars(node), "inputs": (numbers, *node.inputs[1:])})
        out = graph.tensor(plain(graph, inner))  # type: ignore[arg-type]
        return graph.emit(op.astype(out.expr, "bool"))

    return convert


def _arg(fn: Callable[..., Expr]) -> Converter:
    def convert(graph: Graph, node: Node) -> Value:
        x = graph.tensor(node[0])
        axis = node.attribute("axis", 0) % len(x.shape)
        keep = bool(node.attribute("keepdims", 1))
        if not node.attribute("select_last_index", 0):
            return graph.emit(fn(x.expr, axis, keep), nonnegative=True)
        flipped = fn(op.flip(x.expr, axis), axis, keep)
        last = graph.extent(graph.shapes.simple(x.shape[axis] - 1))
        return graph.emit(op.subtract(last, flipped), nonnegative=True)

    return convert


def _cumulative_sum(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    axis = int(graph.require_array(node[1], "the axis").item()) % len(x.shape)
    exclusive, backward = bool(node.attribute("exclusive", 0)), bool(node.attribute("reverse", 0))
    if not all(map(is_known, x.shape)):
        return _sum_by_mask(graph, x, axis, exclusive, backward)
    value = op.flip(x.expr, axis) if backward else x.expr
    total = op.cumsum(value, axis, x.dtype, exclusive)
    return graph.emit(op.flip(total, axis) if backward else total)


def _cumulative_product(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    axis = int(graph.require_array(node[1], "the axis").item()) % len(x.shape)
    if not all(map(is_known, x.shape)):
        raise ModelError("a running product over dynamic shapes cannot be compiled")
    backward = bool(node.attribute("reverse", 0))
    value = op.flip(x.expr, axis) if backward else x.expr
    total = op.cumprod(value, axis, x.dtype, bool(node.attribute("exclusive", 0)))
    return graph.emit(op.flip(total, axis) if backward else total)


def _sum_by_mask(graph: Graph, x: Tensor, axis: int, exclusive: bool, backward: bool) -> Tensor:
    """out[i] = sum of x[j] where j <= i: TVM's scan needs static shapes, this is one masked sum."""
    at = arange(graph, 0, x.shape[axis])
    i, j = op.expand_dims(at.expr, [1]), op.expand_dims(at.expr, [0])
    if backward:
        i, j = j, i
    mask = graph.emit(op.astype((op.less if exclusive else op.less_equal)(j, i), x.dtype))
    order = [a for a in range(len(x.shape)) if a != axis] + [axis]
    rows = graph.transpose(x, order)
    total = graph.emit(op.matmul(rows.expr, op.permute_dims(mask.expr, [1, 0])))
    return graph.transpose(total, [order.index(a) for a in range(len(order))])


def _top_k(graph: Graph, node: Node) -> Sequence[Value]:
    x = graph.tensor(node[0])
    k = node.attribute("k") or graph.require_sizes(node[1], "k")[0]
    if not is_known(k):
        raise ModelError("k depends on the run: only a k known now can be compiled")
    if x.dtype.startswith("uint"):
        raise ModelError(f"the largest k of {x.dtype} cannot be compiled: cast to a signed type")
    axis, largest = node.attribute("axis", -1) % len(x.shape), bool(node.attribute("largest", 1))
    both = graph.builder.emit(op.topk(x.expr, int(k), axis, "both", largest, "int64"))
    values = graph.emit(relax.TupleGetItem(both, 0))
    return [values, graph.emit(relax.TupleGetItem(both, 1), nonnegative=True)]


CONVERTERS: dict[str, Converter] = {
    "ArgMax": _arg(op.argmax),
    "ArgMin": _arg(op.argmin),
    "CumProd": _cumulative_product,
    "CumSum": _cumulative_sum,
    "ReduceL1": _reduction(lambda x, axes, keep: op.sum(op.abs(x), axes, keep), 0, op.abs),
    "ReduceL2": _reduction(
        lambda x, axes, keep: op.sqrt(op.sum(op.multiply(x, x), axes, keep)), 0, op.abs
    ),
    "ReduceLogSum": _reduction(
        lambda x, axes, keep: op.log(op.sum(x, axes, keep)), -math.inf, op.log
    ),
    "ReduceLogSumExp": _reduction(_log_sum_exp, -math.inf),
    "ReduceMax": _as_integers(_largest, -math.inf),
    "ReduceMean": _reduction(op.mean, math.nan),
    "ReduceMin": _as_integers(_smallest, math.inf),
    "ReduceProd": _reduction(op.prod, 1),
    "ReduceSum": _reduction(op.sum, 0),
    "ReduceSumSquare": _reduction(
        lambda x, axes, keep: op.sum(op.multiply(x, x), axes, keep), 0, lambda x: op.multiply(x, x)
    ),
    "TopK": _top_k,
}
