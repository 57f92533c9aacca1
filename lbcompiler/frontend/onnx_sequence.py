"""Sequences of tensors whose length is known: lists at import, nothing at run time."""

from __future__ import annotations

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Graph, Node, Tensor, TensorList, Value
from lbcompiler.frontend.onnx_move import concat
from lbcompiler.frontend.onnx_slice import part
from lbcompiler.frontend.shapes import Size, is_known

op = relax.op


def _items(value: Value) -> tuple[Value, ...]:
    if not isinstance(value, TensorList):
        raise ModelError("a sequence is expected where a tensor stands")
    return value.items


def _position(graph: Graph, node: Node, at: int, default: int) -> int:
    value = node.optional(at)
    return default if value is None else int(graph.require_array(value, "the position").item())


def _construct(graph: Graph, node: Node) -> Value:
    return TensorList(tuple(node[i] for i in range(len(node.inputs))))


def _at(graph: Graph, node: Node) -> Value:
    return _items(node[0])[_position(graph, node, 1, 0)]


def _insert(graph: Graph, node: Node) -> Value:
    items = list(_items(node[0]))
    items.insert(_position(graph, node, 2, len(items)), node[1])
    return TensorList(tuple(items))


def _erase(graph: Graph, node: Node) -> Value:
    items = list(_items(node[0]))
    items.pop(_position(graph, node, 1, -1))
    return TensorList(tuple(items))


def _split(graph: Graph, node: Node) -> Value:
    x, axis = graph.tensor(node[0]), node.attribute("axis", 0)
    axis %= len(x.shape)
    extent = x.shape[axis]
    drops = not node.has(1) and not node.attribute("keepdims", 1)
    parts = []
    begin: Size = 0
    for size in _part_sizes(graph, node, extent):
        end = graph.shapes.least(extent, graph.shapes.simple(begin + size))
        piece = part(graph, x, {axis: (begin, end, 1)})
        parts.append(graph.emit(op.squeeze(piece.expr, [axis])) if drops else piece)
        begin = end
    return TensorList(tuple(parts))


def _part_sizes(graph: Graph, node: Node, extent: Size) -> list[Size]:
    """One number is the size of every part, several are the sizes of them all."""
    value = node.optional(1)
    sizes = [1] if value is None else graph.require_sizes(value, "the split")
    if value is not None and value.shape != ():
        return sizes
    if not is_known(extent) or not is_known(sizes[0]):
        raise ModelError("how many parts it makes is not known before the run: fix the input shape")
    return [sizes[0]] * -(-int(extent) // int(sizes[0]))


def _concat(graph: Graph, node: Node) -> Value:
    axis = node.attribute("axis")
    tensors: list[Value] = [graph.tensor(value) for value in _items(node[0])]
    if node.attribute("new_axis", 0):
        tensors = [_unsqueezed(graph, value, axis) for value in tensors]
    return concat(graph, tensors, axis)


def _unsqueezed(graph: Graph, value: Value, axis: int) -> Tensor:
    return graph.emit(op.expand_dims(graph.expr(value), [axis]))


def _length(graph: Graph, node: Node) -> Value:
    return graph.of_number(len(_items(node[0])))


CONVERTERS: dict[str, Converter] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": _construct,
    "SequenceEmpty": lambda graph, node: TensorList(()),
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
    "SplitToSequence": _split,
}
