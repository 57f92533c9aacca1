"""Shape arithmetic, evaluated beside the graph: nodes on small integer tensors whose elements are
sizes.

A node emits nothing if all of its inputs are sizes: Shape, Gather, Concat, Mul, Where and the
like become arithmetic on object arrays. What the shapes do not decide (a comparison that depends
on the run) is left to the graph.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lbcompiler.frontend.onnx_graph import SIZES_LIMIT, Graph, Node, Value
from lbcompiler.frontend.shapes import (
    Shapes,
    Size,
    Sizes,
    Undecided,
    all_known,
    is_known,
    object_array,
)

Evaluate = Callable[[Shapes, Node, Sequence[Sizes]], Sizes]
INTEGERS = {6: "int32", 7: "int64", 9: "bool"}  # ONNX element types that a size may be cast to


def evaluate(graph: Graph, node: Node) -> list[Value] | None:
    """The outputs of a node as sizes, or None if they are not sizes."""
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    if node.op == "Shape":
        dims = list(node.inputs[0].shape)
        dims = dims[slice(node.attribute("start", 0), node.attribute("end", len(dims)))]
        return [graph.of_sizes(object_array(dims), "int64")]
    if node.op == "Size":
        total = graph.shapes.product(node.inputs[0].shape)
        return [graph.of_sizes(object_array([total], ()), "int64")]
    run = TABLE.get(node.op)
    if run is None:
        return None
    arrays = [graph.sizes(value) for value in node.inputs if value is not None]
    if any(array is None for array in arrays) or len(arrays) != len(node.inputs):
        return None
    try:
        found = run(graph.shapes, node, arrays)  # type: ignore[arg-type]
    except Undecided:
        return None
    if found.size > SIZES_LIMIT:
        return None
    return [graph.of_sizes(np.asarray(found, dtype=object), _dtype(node))]


def _dtype(node: Node) -> str:
    if node.op in COMPARISONS or node.op in ("And", "Or", "Not"):
        return "bool"
    if node.op == "Cast":
        return INTEGERS[node.attribute("to")]
    return node[1].dtype if node.op == "Where" else node[0].dtype


def _elementwise(fn: Callable[..., Size]) -> Evaluate:
    def run(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
        out = arrays[0]
        if len(arrays) == 1:
            return _lifted(lambda a: shapes.simple(fn(shapes, a)), out)
        for other in arrays[1:]:
            out = _lifted(lambda a, b: shapes.simple(fn(shapes, a, b)), out, other)
        return out

    return run


def _lifted(fn: Callable[..., Size], *arrays: Sizes) -> Sizes:
    return np.asarray(np.frompyfunc(fn, len(arrays), 1)(*arrays), dtype=object)


def _comparison(op: Callable[[Any, Any], Any]) -> Evaluate:
    def run(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
        return _lifted(lambda a, b: shapes.compare(op, a, b), *arrays)

    return run


COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}


def _known(values: Sizes) -> list[int]:
    if not all_known(values.ravel()):
        raise Undecided("it would need numbers")
    return [int(value) for value in values.ravel()]


def _cast(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    if node.attribute("to") not in INTEGERS:
        raise Undecided("a size as a float is data")
    if INTEGERS[node.attribute("to")] == "bool":
        return _lifted(lambda a: shapes.compare(operator.ne, a, 0), arrays[0])
    return arrays[0]


def _where(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    _known(arrays[0])
    return np.asarray(np.where(arrays[0].astype(bool), arrays[1], arrays[2]), dtype=object)


def _concat(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    return np.concatenate(arrays, axis=node.attribute("axis", 0))


def _gather(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    indices = np.array(_known(arrays[1]), dtype=np.int64).reshape(arrays[1].shape)
    return np.asarray(np.take(arrays[0], indices, axis=node.attribute("axis", 0)), dtype=object)


def _axes(node: Node, arrays: Sequence[Sizes]) -> tuple[int, ...] | None:
    if len(arrays) > 1:
        return tuple(_known(arrays[1]))
    axes = node.attribute("axes")
    return None if axes is None else tuple(axes)


def _unsqueeze(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    return np.expand_dims(arrays[0], _axes(node, arrays) or ())


def _squeeze(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    return np.asarray(np.squeeze(arrays[0], _axes(node, arrays)), dtype=object)


def _reshape(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    shape = _known(arrays[1])
    if 0 in shape and not node.attribute("allowzero", 0):
        shape = [arrays[0].shape[i] if extent == 0 else extent for i, extent in enumerate(shape)]
    return arrays[0].reshape(shape)


def _slice(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    if len(arrays) == 1:
        starts, ends = node.attribute("starts"), node.attribute("ends")
        axes = node.attribute("axes", range(len(starts)))
        steps = [1] * len(starts)
    else:
        starts, ends = _known(arrays[1]), _known(arrays[2])
        axes = _known(arrays[3]) if len(arrays) > 3 else list(range(len(starts)))
        steps = _known(arrays[4]) if len(arrays) > 4 else [1] * len(starts)
    index: list[slice] = [slice(None)] * arrays[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        extent = arrays[0].shape[axis]
        index[axis] = slice(start, None if step < 0 and end < -extent else end, step)
    return arrays[0][tuple(index)]


def _reduce(fn: Callable[[Shapes, Size, Size], Size]) -> Evaluate:
    def run(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
        if arrays[0].ndim != 1 or not arrays[0].size:
            raise Undecided("only a vector of sizes is reduced here")
        values = list(arrays[0])
        total = values[0]
        for value in values[1:]:
            total = shapes.simple(fn(shapes, total, value))
        return object_array([total], (1,) if node.attribute("keepdims", 1) else ())

    return run


def _expand(shapes: Shapes, node: Node, arrays: Sequence[Sizes]) -> Sizes:
    shape = np.broadcast_shapes(arrays[0].shape, tuple(_known(arrays[1])))
    return np.broadcast_to(arrays[0], shape).copy()


def _magnitude(shapes: Shapes, value: Size) -> Size:
    return abs(value) if is_known(value) else shapes.most(value, -value)


def _choice(shapes: Shapes, a: Size, b: Size, both: bool) -> Size:
    if not (is_known(a) and is_known(b)):
        raise Undecided("a truth value that depends on the run")
    return int(bool(a) and bool(b)) if both else int(bool(a) or bool(b))


def _add(shapes: Shapes, a: Size, b: Size) -> Size:
    return a + b


def _multiply(shapes: Shapes, a: Size, b: Size) -> Size:
    return a * b


def _remainder(shapes: Shapes, a: Size, b: Size) -> Size:
    if is_known(b) and b == 0:
        raise Undecided("a division by zero")
    return shapes.modulo(a, b)


def _quotient(shapes: Shapes, a: Size, b: Size) -> Size:
    if is_known(b) and b == 0:
        raise Undecided("a division by zero")
    return shapes.truncate_divide(a, b)


TABLE: dict[str, Evaluate] = {
    "Add": _elementwise(_add),
    "Sub": _elementwise(lambda shapes, a, b: a - b),
    "Mul": _elementwise(_multiply),
    "Div": _elementwise(_quotient),
    "Mod": _elementwise(_remainder),
    "Max": _elementwise(Shapes.most),
    "Min": _elementwise(Shapes.least),
    "Neg": _elementwise(lambda shapes, a: -a),
    "Abs": _elementwise(_magnitude),
    "And": _elementwise(lambda shapes, a, b: _choice(shapes, a, b, both=True)),
    "Or": _elementwise(lambda shapes, a, b: _choice(shapes, a, b, both=False)),
    "Not": _elementwise(lambda shapes, a: int(not a)),
    **{name: _comparison(op) for name, op in COMPARISONS.items()},
    "Identity": lambda shapes, node, arrays: arrays[0],
    "Cast": _cast,
    "Where": _where,
    "Concat": _concat,
    "Gather": _gather,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Expand": _expand,
    "ReduceProd": _reduce(_multiply),
    "ReduceSum": _reduce(_add),
    "ReduceMax": _reduce(Shapes.most),
    "ReduceMin": _reduce(Shapes.least),
    "Flatten": lambda shapes, node, arrays: arrays[0].reshape(
        int(np.prod(arrays[0].shape[: node.attribute("axis", 1)])), -1
    ),
}
