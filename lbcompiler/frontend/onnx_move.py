"""Data movement without indices: reshape, transpose, expand, concatenate, fill."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Graph, Node, Tensor, Value, is_one
from lbcompiler.frontend.onnx_weights import computed_type, element_type, widened
from lbcompiler.frontend.shapes import Size, expression, is_known, text

op = relax.op


def _reshape(graph: Graph, node: Node) -> Value:
    """0 copies a dimension (unless allowzero), -1 takes what is left."""
    sizes = node.attribute("shape") or graph.require_sizes(node[1], "its new shape")
    old = node[0].shape
    new: list[Size] = [
        old[i] if is_known(size) and size == 0 and not node.attribute("allowzero", 0) else size
        for i, size in enumerate(sizes)
    ]
    holes = [i for i, size in enumerate(new) if is_known(size) and size == -1]
    if holes:
        rest = [size for i, size in enumerate(new) if i != holes[0]]
        new[holes[0]] = (
            0 if any(is_known(s) and s == 0 for s in rest) else graph.shapes.quotient(old, rest)
        )
    return reshape(graph, node[0], new)


def reshape(graph: Graph, value: Value, shape: Sequence[Size]) -> Tensor:
    known = [math.prod(s) if all(map(is_known, s)) else None for s in (value.shape, shape)]
    if None not in known and known[0] != known[1]:
        raise ModelError(f"{list(value.shape)} cannot be reshaped to {list(shape)}")
    return graph.reshape(value, shape)


def _flatten(graph: Graph, node: Node) -> Value:
    shape = node[0].shape
    axis = node.attribute("axis", 1)
    axis += len(shape) if axis < 0 else 0
    halves = [graph.shapes.product(half) for half in (shape[:axis], shape[axis:])]
    return graph.reshape(node[0], halves)


def _transpose(graph: Graph, node: Node) -> Value:
    rank = len(node[0].shape)
    return graph.transpose(node[0], node.attribute("perm") or list(reversed(range(rank))))


def axes_of(graph: Graph, node: Node, rank: int, position: int = 1) -> list[int] | None:
    """The axes of a node, an attribute in old opsets and an input in new ones, counted from 0."""
    axes = node.attribute("axes")
    value = node.optional(position)
    if value is not None:
        axes = [int(a) for a in graph.require_array(value, "the axes").ravel()]
    if axes is None:
        return None
    if not all(-rank <= axis < rank for axis in axes):
        raise ModelError(f"the axes {axes} are not all within {rank} dimensions")
    return [axis % rank for axis in axes]


def _unsqueeze(graph: Graph, node: Node) -> Value:
    count = len(node.attribute("axes") or graph.require_array(node[1], "the axes"))
    axes = axes_of(graph, node, len(node[0].shape) + count) or []
    out = op.expand_dims(graph.expr(node[0]), sorted(axes))
    return graph.emit(out, nonnegative=graph.is_nonnegative_tensor(node[0]))


def _squeeze(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    axes = axes_of(graph, node, len(x.shape))
    if axes is None:
        open_ = [text(size) for size in x.shape if not is_known(size)]
        if open_:
            raise ModelError(
                f"which dimensions of {list(x.shape)} it drops depends on the run; fix "
                f"{', '.join(open_)}"
            )
        axes = [axis for axis, size in enumerate(x.shape) if is_one(size)]
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if not all(map(graph.shapes.same_form, shape, x.shape)):
        wrong = [
            size
            for axis, size in enumerate(x.shape)
            if axis in axes and is_known(size) and size != 1
        ]
        if wrong:
            raise ModelError(f"it drops a dimension of size {wrong[0]}")
        x = graph.cast_shape(x, shape)  # the model promises a 1; checked at run time
    return graph.emit(op.squeeze(x.expr, axes), nonnegative=x.nonnegative) if axes else x


def _expand(graph: Graph, node: Node) -> Value:
    return expand(graph, node[0], graph.require_sizes(node[1], "its shape"))


def expand(graph: Graph, value: Value, shape: Sequence[Size]) -> Tensor:
    """Broadcast to `shape`, in which a 1 keeps the tensor's own size."""
    x = graph.tensor(value)
    rank = max(len(x.shape), len(shape))
    have = [1] * (rank - len(x.shape)) + list(x.shape)
    want = [1] * (rank - len(shape)) + list(shape)
    out = [b if is_one(a) else a for a, b in zip(have, want, strict=True)]
    for a, b in zip(have, want, strict=True):
        if is_known(a) and is_known(b) and a != b and 1 not in (a, b):
            raise ModelError(f"{list(x.shape)} cannot be expanded to {list(shape)}")
    if len(have) == len(x.shape) and all(map(graph.shapes.same_form, have, out)):
        return x
    target = relax.ShapeExpr([expression(size) for size in out])
    return graph.emit(op.broadcast_to(x.expr, target), nonnegative=x.nonnegative)


def _concat(graph: Graph, node: Node) -> Value:
    values = [value for value in node.inputs if value is not None]
    return concat(graph, values, node.attribute("axis", 0))


def concat(graph: Graph, values: Sequence[Value], axis: int) -> Tensor:
    full = [value for value in values if not is_empty(value.shape[axis])]
    values = full or values[:1]
    positive = all(graph.is_nonnegative_tensor(value) for value in values)
    tensors = graph.agree_but(axis, values)
    if len(tensors) == 1:
        return tensors[0]
    axis %= len(tensors[0].shape)
    return graph.emit(op.concat([t.expr for t in tensors], axis), nonnegative=positive)


def is_empty(size: Size) -> bool:
    return is_known(size) and bool(size == 0)


def fill(graph: Graph, shape: Sequence[Size], number: float, dtype: str) -> Tensor:
    sizes = relax.ShapeExpr([expression(size) for size in shape])
    return graph.emit(op.full(sizes, graph.scalar(number, dtype), dtype), nonnegative=number >= 0)


def _constant_of_shape(graph: Graph, node: Node) -> Value:
    value = node.attribute("value")
    array = widened(numpy_helper.to_array(value)) if value is not None else np.zeros(1, np.float32)
    shape = graph.require_sizes(node[0], "its shape")
    return fill(graph, shape, array.ravel()[0].item(), str(array.dtype))


def _range(graph: Graph, node: Node) -> Value:
    start, limit, delta = (graph.require_sizes(node[i], "its bound")[0] for i in range(3))
    dtype = node[0].dtype
    if not is_known(delta) or delta not in (1, -1):
        raise ModelError(f"a range with dynamic ends and the step {text(delta)} cannot be compiled")
    if delta == 1:
        return arange(graph, start, limit, dtype)
    count = graph.shapes.simple(start - limit)
    down = arange(graph, 0, count, "int64")
    out = graph.emit(op.subtract(graph.extent(start), down.expr))
    return out if dtype == "int64" else graph.emit(op.astype(out.expr, dtype))


def arange(graph: Graph, start: Size, end: Size, dtype: str = "int64") -> Tensor:
    """start, start + 1, ... before end."""
    positive = graph.shapes.proven(expression(start) >= 0)
    count = graph.shapes.most(0, graph.shapes.simple(end - start))
    bounds = (expression(size) for size in (start, graph.shapes.simple(start + count), 1))
    out = graph.emit(op.arange(*bounds, "int64"), nonnegative=positive)
    return out if dtype == "int64" else graph.emit(op.astype(out.expr, dtype), nonnegative=positive)


def _tile(graph: Graph, node: Node) -> Value:
    return tile(graph, node[0], graph.require_sizes(node[1], "how often it repeats"))


def tile(graph: Graph, value: Value, repeats: Sequence[Size]) -> Tensor:
    """Each dimension repeated: (d) -> (1, d) -> (r, d) -> (r*d)."""
    x = graph.tensor(value)
    if all(map(is_one, repeats)):
        return x
    spread = [size for pair in zip([1] * len(x.shape), x.shape, strict=True) for size in pair]
    wide = [size for pair in zip(repeats, x.shape, strict=True) for size in pair]
    out = [graph.shapes.product(pair) for pair in zip(repeats, x.shape, strict=True)]
    return graph.reshape(expand(graph, graph.reshape(x, spread), wide), out)


def _depth_to_space(graph: Graph, node: Node) -> Value:
    n, c, h, w = node[0].shape
    block = node.attribute("blocksize")
    depth = graph.shapes.floor_divide(c, block * block)
    if node.attribute("mode", "DCR") == "DCR":
        split, order = [n, block, block, depth, h, w], [0, 3, 4, 1, 5, 2]
    else:
        split, order = [n, depth, block, block, h, w], [0, 1, 4, 2, 5, 3]
    moved = graph.transpose(graph.reshape(node[0], split), order)
    return graph.reshape(moved, [n, depth, h * block, w * block])


def _space_to_depth(graph: Graph, node: Node) -> Value:
    n, c, h, w = node[0].shape
    block = node.attribute("blocksize")
    rows, columns = (graph.shapes.floor_divide(size, block) for size in (h, w))
    split = graph.reshape(node[0], [n, c, rows, block, columns, block])
    order = [0, 3, 5, 1, 2, 4] if node.attribute("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return graph.reshape(graph.transpose(split, order), [n, c * block * block, rows, columns])


def _trilu(graph: Graph, node: Node) -> Value:
    """Kept where column - row >= k (upper) or <= k (lower), decided by a mask of two ranges."""
    x = graph.tensor(node[0])
    value = node.optional(1)
    k = graph.require_sizes(value, "its diagonal")[0] if value is not None else 0
    rows, columns = x.shape[-2:]
    down = graph.emit(op.expand_dims(arange(graph, k, graph.shapes.simple(k + rows)).expr, [1]))
    across = arange(graph, 0, columns)
    compare = op.greater_equal if node.attribute("upper", 1) else op.less_equal
    mask = graph.emit(compare(across.expr, down.expr))
    return graph.emit(op.where(mask.expr, x.expr, graph.scalar(0, x.dtype)))


def _eye_like(graph: Graph, node: Node) -> Value:
    rows, columns = node[0].shape
    code = node.attribute("dtype")
    dtype = computed_type(element_type(code)) if code else node[0].dtype
    k = node.attribute("k", 0)
    down = op.expand_dims(arange(graph, k, graph.shapes.simple(k + rows)).expr, [1])
    return graph.emit(op.astype(op.equal(arange(graph, 0, columns).expr, down), dtype))


CONVERTERS: dict[str, Converter] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Range": _range,
    "Reshape": _reshape,
    "SpaceToDepth": _space_to_depth,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
