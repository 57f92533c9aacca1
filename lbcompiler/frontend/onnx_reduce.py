"""Reductions along axes, positions of extremes, running sums, the largest k."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Expr, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_move import arange, axes_of
from lbcompiler.frontend.shapes import is_known

op = relax.op
Reduce = Callable[[Expr, list[int], bool], Expr]


def _reduction(fn: Reduce, elementwise: Callable[[Expr], Expr] | None = None) -> Converter:
    """A reduction; `elementwise` is what it does to an element when it reduces no axis."""

    def convert(graph: Graph, node: Node) -> Value:
        x = graph.tensor(node[0])
        axes = axes_of(graph, node, len(x.shape))
        if not axes and node.attribute("noop_with_empty_axes", 0):
            return graph.emit(elementwise(x.expr)) if elementwise else x
        axes = axes or list(range(len(x.shape)))
        keep = bool(node.attribute("keepdims", 1))
        if not axes:
            return graph.emit(elementwise(x.expr)) if elementwise else x
        return graph.emit(fn(x.expr, axes, keep))

    return convert


def _log_sum_exp(x: Expr, axes: list[int], keep: bool) -> Expr:
    """Shifted by the maximum: exp does not overflow."""
    top = op.max(x, axes, True)
    total = op.log(op.sum(op.exp(op.subtract(x, top)), axes, True))
    out = op.add(total, top)
    return out if keep else op.squeeze(out, axes)


def _as_integers(fn: Reduce) -> Converter:
    """Max and min of bool go through int8."""
    plain = _reduction(fn)

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
    axis, largest = node.attribute("axis", -1) % len(x.shape), bool(node.attribute("largest", 1))
    both = graph.builder.emit(op.topk(x.expr, int(k), axis, "both", largest, "int64"))
    values = graph.emit(relax.TupleGetItem(both, 0))
    return [values, graph.emit(relax.TupleGetItem(both, 1), nonnegative=True)]


CONVERTERS: dict[str, Converter] = {
    "ArgMax": _arg(op.argmax),
    "ArgMin": _arg(op.argmin),
    "CumSum": _cumulative_sum,
    "ReduceL1": _reduction(lambda x, axes, keep: op.sum(op.abs(x), axes, keep), op.abs),
    "ReduceL2": _reduction(
        lambda x, axes, keep: op.sqrt(op.sum(op.multiply(x, x), axes, keep)), op.abs
    ),
    "ReduceLogSum": _reduction(lambda x, axes, keep: op.log(op.sum(x, axes, keep)), op.log),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "ReduceMax": _as_integers(op.max),
    "ReduceMean": _reduction(op.mean),
    "ReduceMin": _as_integers(op.min),
    "ReduceProd": _reduction(op.prod),
    "ReduceSum": _reduction(op.sum),
    "ReduceSumSquare": _reduction(
        lambda x, axes, keep: op.sum(op.multiply(x, x), axes, keep), lambda x: op.multiply(x, x)
    ),
    "TopK": _top_k,
}
