"""Gather and scatter. An index that data decides is wrapped if negative and clamped: it is never
trusted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import (
    Constant,
    Converter,
    Expr,
    Graph,
    Node,
    SizeTensor,
    Tensor,
    Value,
)
from lbcompiler.frontend.onnx_move import arange, expand
from lbcompiler.frontend.onnx_slice import part
from lbcompiler.frontend.shapes import Size, is_known, object_array

op = relax.op


def wrapped(graph: Graph, indices: Value, extent: Size) -> Tensor:
    """Indices along one axis of `extent`, counted from the start, as int64."""
    if isinstance(indices, Constant):
        return graph.tensor(_wrapped_constant(graph, indices, extent))
    value = graph.tensor(indices)
    x = value.expr if value.dtype == "int64" else op.astype(value.expr, "int64")
    if not value.nonnegative:
        negative = op.less(x, graph.scalar(0, "int64"))
        x = op.where(negative, op.add(x, graph.extent(extent)), x)
    return graph.emit(x, nonnegative=True)


def _wrapped_constant(graph: Graph, indices: Constant, extent: Size) -> Value:
    array = indices.array().astype(np.int64)
    if is_known(extent) and not ((-extent <= array) & (array < extent)).all():
        raise ModelError(
            f"an index of {array.ravel()[:8].tolist()} is outside of a dimension of {extent}"
        )
    if is_known(extent) or (array >= 0).all():
        return graph.constant(
            np.where(array < 0, array + (extent if is_known(extent) else 0), array)
        )
    sizes = [graph.shapes.from_end(int(i), extent) for i in array.ravel()]
    return SizeTensor(object_array(sizes, array.shape), "int64")


def _clamped(graph: Graph, indices: Tensor, extent: Size) -> Expr:
    last = graph.extent(graph.shapes.simple(extent - 1))
    return op.minimum(op.maximum(indices.expr, graph.scalar(0, "int64")), last)


def _gather(graph: Graph, node: Node) -> Value:
    data, indices = node[0], node[1]
    axis = node.attribute("axis", 0) % len(data.shape)
    extent = data.shape[axis]
    scalar = graph.sizes(indices) if indices.shape == () else None
    if scalar is not None and not isinstance(data, Constant):
        return _one(graph, graph.tensor(data), axis, graph.shapes.from_end(scalar.item(), extent))
    at = wrapped(graph, indices, extent)
    taken = op.take(_table(graph, data), at.expr, axis, mode="clip")
    return graph.emit(taken, nonnegative=graph.is_nonnegative_tensor(data))


def _table(graph: Graph, data: Value) -> Expr:
    """What is gathered from; an embedding is in the weight table however small."""
    if isinstance(data, Constant) and data.dtype == "float32" and len(data.shape) >= 2:
        return graph.builder.emit(graph.weight(data))
    return graph.expr(data)


def _one(graph: Graph, x: Tensor, axis: int, index: Size) -> Tensor:
    """x at one position of an axis, which is dropped."""
    extent = x.shape[axis]
    if is_known(extent) and is_known(index) and not 0 <= index < extent:
        raise ModelError(f"the index {index} is outside of a dimension of {extent}")
    one = part(graph, x, {axis: (index, graph.shapes.simple(index + 1), 1)})
    return graph.emit(op.squeeze(one.expr, [axis]), nonnegative=x.nonnegative)


def _gather_elements(graph: Graph, node: Node) -> Value:
    data = graph.tensor(node[0])
    axis = node.attribute("axis", 0) % len(data.shape)
    at = wrapped(graph, node[1], data.shape[axis])
    indices = graph.emit(_clamped(graph, at, data.shape[axis]))
    return graph.emit(
        op.gather_elements(data.expr, indices.expr, axis), nonnegative=data.nonnegative
    )


def _gather_nd(graph: Graph, node: Node) -> Value:
    """Over flat rows: an index tuple becomes one row number, so that each coordinate is clamped
    alone."""
    data, batch = graph.tensor(node[0]), node.attribute("batch_dims", 0)
    width = node[1].shape[-1]
    if not is_known(width):
        raise ModelError("how many coordinates an index has is not known before the run")
    at, rows, inner = _row_numbers(graph, data.shape, node[1], batch)
    flat = graph.reshape(data, [rows, *inner])
    return graph.emit(op.take(flat.expr, at.expr, 0, mode="clip"), nonnegative=data.nonnegative)


def _row_numbers(
    graph: Graph, shape: Sequence[Size], indices: Value, batch: int = 0
) -> tuple[Tensor, Size, list[Size]]:
    """Index tuples (..., width) as numbers of rows of data flattened over `batch` + width axes."""
    width = int(indices.shape[-1])
    outer, inner = list(shape[: batch + width]), list(shape[batch + width :])
    lead = list(indices.shape[:-1])
    value = graph.tensor(indices)
    total = None
    for k in range(batch):
        extent = outer[k]
        position = graph.reshape(
            arange(graph, 0, extent), [extent if i == k else 1 for i in range(len(lead))]
        )
        total = _joined(graph, total, expand(graph, position, lead), extent)
    for k in range(width):
        extent = outer[batch + k]
        one = part(graph, value, {len(lead): (k, k + 1, 1)})
        coordinate = wrapped(
            graph, graph.emit(op.squeeze(one.expr, [-1]), nonnegative=value.nonnegative), extent
        )
        safe = graph.emit(_clamped(graph, coordinate, extent), nonnegative=True)
        total = _joined(graph, total, safe, extent)
    if total is None:
        raise ModelError("its indices have no coordinates")
    return total, graph.shapes.product(outer), inner


def _joined(graph: Graph, total: Tensor | None, position: Tensor, extent: Size) -> Tensor:
    if total is None:
        return position
    a, b = graph.broadcast(total, position)
    return graph.emit(op.add(op.multiply(a.expr, graph.extent(extent)), b.expr), nonnegative=True)


REDUCTIONS = {"none": "update", "add": "add", "mul": "mul", "min": "min", "max": "max"}


def _scatter_elements(graph: Graph, node: Node) -> Value:
    data = graph.tensor(node[0])
    axis = node.attribute("axis", 0) % len(data.shape)
    at = wrapped(graph, node[1], data.shape[axis])
    indices = graph.emit(_clamped(graph, at, data.shape[axis]))
    reduction = REDUCTIONS[node.attribute("reduction", "none")]
    out = op.scatter_elements(data.expr, indices.expr, graph.expr(node[2]), axis, reduction)
    return graph.emit(out)


def _scatter_nd(graph: Graph, node: Node) -> Value:
    data = graph.tensor(node[0])
    at, rows, inner = _row_numbers(graph, data.shape, node[1])
    count = graph.shapes.product(at.shape)
    flat = graph.reshape(data, [rows, *inner])
    updates = graph.reshape(node[2], [count, *inner])
    indices = graph.reshape(at, [count, 1])
    reduction = REDUCTIONS[node.attribute("reduction", "none")]
    out = graph.emit(op.scatter_nd(flat.expr, indices.expr, updates.expr, reduction))
    return graph.reshape(out, data.shape)


def _one_hot(graph: Graph, node: Node) -> Value:
    depth = (
        graph.require_sizes(node[1], "the depth")[0]
        if node[1].dtype != "float32"
        else int(graph.require_array(node[1], "the depth").ravel()[0])
    )
    indices = graph.tensor(node[0])  # one out of range is no error here: it hits nothing
    if indices.dtype == "float32":
        indices = graph.emit(op.astype(indices.expr, "int64"))
    at = wrapped(graph, indices, depth)
    rank = len(at.shape)
    axis = node.attribute("axis", -1) % (rank + 1)
    positions = arange(graph, 0, depth)
    line = graph.reshape(positions, [depth if i == axis else 1 for i in range(rank + 1)])
    hit = op.equal(op.expand_dims(at.expr, [axis]), line.expr)
    values = graph.tensor(node[2])
    off, on = (op.squeeze(part(graph, values, {0: (i, i + 1, 1)}).expr, [0]) for i in range(2))
    return graph.emit(op.where(hit, on, off))


def _compress(graph: Graph, node: Node) -> Value:
    keep = np.flatnonzero(graph.require_array(node[1], "what it keeps"))
    data, axis = node[0], node.attribute("axis")
    if axis is None:
        data, axis = graph.reshape(data, [graph.shapes.product(data.shape)]), 0
    return graph.emit(
        op.take(graph.expr(data), relax.const(keep.astype(np.int64), "int64"), axis, mode="clip")
    )


def _reverse_sequence(graph: Graph, node: Node) -> Value:
    """Position t of a sequence of length l reads l - 1 - t if t < l, else t."""
    x, lengths = graph.tensor(node[0]), graph.tensor(node[1])
    time, batch = node.attribute("time_axis", 0), node.attribute("batch_axis", 1)
    extent = x.shape[time]
    counts = graph.emit(op.astype(lengths.expr, "int64"))
    length = graph.reshape(counts, [x.shape[batch] if i == batch else 1 for i in range(2)]).expr
    at = graph.reshape(arange(graph, 0, extent), [extent if i == time else 1 for i in range(2)])
    mirrored = op.subtract(op.subtract(length, graph.scalar(1, "int64")), at.expr)
    source = graph.emit(op.where(op.less(at.expr, length), mirrored, at.expr))
    shape = [*source.shape, *[1] * (len(x.shape) - 2)]
    wide = expand(graph, graph.reshape(source, shape), x.shape)
    return graph.emit(op.gather_elements(x.expr, wide.expr, time), nonnegative=x.nonnegative)


CONVERTERS: dict[str, Converter] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
