"""Parts of a tensor and edges around it: Slice, Split, Pad.

Bounds are clamped here, on sizes, as ONNX clamps them; the slice that is emitted lies inside the
tensor, so that its shape is `end - begin` and nothing longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_move import arange, concat, fill
from lbcompiler.frontend.shapes import Size, expression, is_known

op = relax.op
FAR = 2**31 - 1  # exporters write "to the end" as this or more


def _slice(graph: Graph, node: Node) -> Value:
    rank = len(node[0].shape)
    if node.has(1):
        starts, ends = (graph.require_sizes(node[i], "a bound") for i in (1, 2))
        axes = graph.require_sizes(node[3], "an axis") if node.has(3) else list(range(len(starts)))
        steps = graph.require_sizes(node[4], "a step") if node.has(4) else [1] * len(starts)
    else:
        starts, ends = node.attribute("starts"), node.attribute("ends")
        axes, steps = node.attribute("axes", list(range(len(starts)))), [1] * len(starts)
    if not all(map(is_known, [*axes, *steps])):
        raise ModelError("its axes or steps are not known before the run")
    x = graph.tensor(node[0])
    forward: dict[int, tuple[Size, Size, int]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        axis %= rank
        if step < 0:
            x, start, end, step = _flipped(graph, x, axis, start, end, step)
        extent = x.shape[axis]
        forward[axis] = (bound(graph, start, extent), bound(graph, end, extent), step)
    return part(graph, x, forward)


def _flipped(
    graph: Graph, x: Tensor, axis: int, start: Size, end: Size, step: int
) -> tuple[Tensor, Size, Size, int]:
    """A slice that runs backward, as a forward slice of the tensor turned round."""
    if not (is_known(start) and is_known(end)):
        raise ModelError("it runs backward between bounds that are not known before the run")
    extent = x.shape[axis]
    first = 0 if start == -1 or start >= FAR else _mirror(graph, start, extent)
    last = extent if end <= -FAR else _mirror(graph, end, extent)
    flipped = graph.emit(op.flip(x.expr, axis), nonnegative=x.nonnegative)
    return flipped, first, last, -step


def _mirror(graph: Graph, index: int, extent: Size) -> Size:
    """The position counted from the other end: index i of n is n - 1 - i; below 0 it counts from
    the end."""
    return (
        -index - 1 if index < 0 else graph.shapes.most(0, graph.shapes.simple(extent - 1 - index))
    )


def bound(graph: Graph, index: Size, extent: Size) -> Size:
    """A slice bound as ONNX reads it: from the end if negative, within 0..extent."""
    if is_known(index) and index >= FAR:
        return extent
    if is_known(index) and index <= -FAR:
        return 0
    return graph.shapes.clamp(graph.shapes.from_end(index, extent), 0, extent)


def part(graph: Graph, x: Tensor, slices: dict[int, tuple[Size, Size, int]]) -> Tensor:
    """x[begin:end:step] on some axes, 0 <= begin <= size, end <= size, step > 0."""
    shapes = graph.shapes
    kept = {
        axis: (begin, shapes.most(begin, end), step)
        for axis, (begin, end, step) in slices.items()
        if step != 1 or not shapes.equal(begin, 0) or not shapes.equal(end, x.shape[axis])
    }
    if not kept:
        return x
    if any(is_known(b) and is_known(e) and b == e for b, e, _ in kept.values()):
        spans = {a: shapes.ceil_divide(shapes.simple(e - b), s) for a, (b, e, s) in kept.items()}
        return fill(graph, [spans.get(a, size) for a, size in enumerate(x.shape)], 0, x.dtype)
    begins, ends, steps = ([expression(slice_[i]) for slice_ in kept.values()] for i in range(3))
    sliced = op.strided_slice(x.expr, list(kept), begins, ends, steps, assume_inbound=True)
    return graph.emit(sliced, nonnegative=x.nonnegative)


def _split(graph: Graph, node: Node) -> Sequence[Value]:
    x = graph.tensor(node[0])
    axis = node.attribute("axis", 0) % len(x.shape)
    extent, count = x.shape[axis], len(node.outputs)
    sizes = node.attribute("split")
    if node.has(1):
        sizes = graph.require_sizes(node[1], "the split")
    if sizes is None:
        if not is_known(extent) and not is_known(graph.shapes.modulo(extent, count)):
            raise ModelError(
                f"whether {extent} divides into {count} parts is not known before the run"
            )
        sizes = [
            graph.shapes.ceil_divide(extent, count)
        ] * count  # the last part ends with the tensor
    out: list[Value] = []
    begin: Size = 0
    for i, size in enumerate(sizes):
        end = extent if i == count - 1 else graph.shapes.simple(begin + size)
        out.append(part(graph, x, {axis: (begin, end, 1)}))
        begin = end
    return out


def _pad(graph: Graph, node: Node) -> Value:
    x, rank = graph.tensor(node[0]), len(node[0].shape)
    pads = node.attribute("pads") or graph.require_sizes(node[1], "the padding")
    axes = (
        [int(a) % rank for a in graph.require_array(node[3], "the axes")]
        if node.has(3)
        else range(rank)
    )
    half = len(pads) // 2
    mode = node.attribute("mode", "constant")
    value = node.attribute("value", 0.0)
    if node.has(2):
        number = graph.require_array(node[2], "the padding value")
        value = number.ravel()[0].item() if number.size else 0
    for axis, before, after in zip(axes, pads[:half], pads[half:], strict=True):
        if not (is_known(before) and is_known(after) and before == after == 0):
            x = pad_axis(graph, x, axis, before, after, mode, value)
    return x


def pad_axis(
    graph: Graph, x: Tensor, axis: int, before: Size, after: Size, mode: str, value: float
) -> Tensor:
    """One axis with `before` and `after` added; a negative number of them crops."""
    extent = x.shape[axis]
    crop = [-size if is_known(size) and size < 0 else 0 for size in (before, after)]
    if any(crop):
        x = part(graph, x, {axis: (crop[0], graph.shapes.simple(extent - crop[1]), 1)})
        before, after = (0 if is_known(size) and size < 0 else size for size in (before, after))
    if mode == "constant":
        return _pad_constant(graph, x, axis, before, after, value)
    index = _source_index(graph, x.shape[axis], before, after, mode)
    return graph.emit(op.take(x.expr, index, axis, mode="clip"), nonnegative=x.nonnegative)


def _pad_constant(
    graph: Graph, x: Tensor, axis: int, before: Size, after: Size, value: float
) -> Tensor:
    if is_known(before) and is_known(after) and x.dtype == "float32":
        width = [0] * (2 * len(x.shape))
        width[2 * axis : 2 * axis + 2] = [before, after]
        return graph.emit(op.nn.pad(x.expr, width, "constant", float(value)))
    parts: list[Value] = []
    for size in (before, None, after):
        if size is None:
            parts.append(x)
        elif not (is_known(size) and size == 0):
            shape = [size if a == axis else extent for a, extent in enumerate(x.shape)]
            parts.append(fill(graph, shape, value, x.dtype))
    return concat(graph, parts, axis)


def _source_index(graph: Graph, extent: Size, before: Size, after: Size, mode: str) -> object:
    """For every position of the padded axis, the position it repeats."""
    if is_known(extent) and is_known(before) and is_known(after):
        names = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}
        if mode not in names:
            raise ModelError(f"the padding mode {mode!r} cannot be compiled")
        index = np.pad(np.arange(extent), (before, after), mode=mode)  # type: ignore[call-overload]
        return relax.const(index.astype(np.int64), "int64")
    shapes = graph.shapes
    at = arange(graph, shapes.simple(-before), shapes.simple(extent + after)).expr
    if mode == "wrap":
        return op.floor_mod(at, graph.extent(extent))
    last = graph.extent(shapes.simple(extent - 1))
    if mode == "edge":
        return op.minimum(op.maximum(at, graph.scalar(0, "int64")), last)
    if mode == "reflect":
        return op.subtract(last, op.abs(op.subtract(last, op.abs(at))))
    raise ModelError(f"the padding mode {mode!r} cannot be compiled")


CONVERTERS: dict[str, Converter] = {"Pad": _pad, "Slice": _slice, "Split": _split}
