"""Convolutions. A 2-D one with a constant weight becomes `lbc.conv`, a 1-D one too, with a
height of 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Constant, Converter, Expr, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_slice import pad_axis
from lbcompiler.frontend.shapes import Size, is_known, text
from lbcompiler.ir import ops
from lbcompiler.ir.model import Array

op = relax.op


def window(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """(strides, dilations) of a convolution or pooling."""
    ones = [1] * len(kernel)
    return node.attribute("strides", ones), node.attribute("dilations", ones)


def padded(
    graph: Graph, node: Node, x: Tensor, kernel: Sequence[int], value: float = 0.0
) -> tuple[Tensor, list[int]]:
    """The input and the numbers to pad with (begins, then ends) as pads or auto_pad say.

    Padding that depends on a dynamic size is done here, and zeros are left."""
    rank = len(kernel)
    auto = node.attribute("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return x, list(node.attribute("pads", [0] * 2 * rank))
    if auto == "VALID":
        return x, [0] * 2 * rank
    strides, dilations = window(node, kernel)
    begins: list[Size] = []
    ends: list[Size] = []
    for axis in range(rank):
        extent, stride = x.shape[2 + axis], strides[axis]
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        windows = graph.shapes.ceil_divide(extent, stride)
        total = graph.shapes.most(0, graph.shapes.simple((windows - 1) * stride + reach - extent))
        half = graph.shapes.floor_divide(total, 2)
        rest = graph.shapes.simple(total - half)
        begins.append(half if auto == "SAME_UPPER" else rest)
        ends.append(rest if auto == "SAME_UPPER" else half)
    if all(map(is_known, begins + ends)):
        return x, begins + ends
    for axis in range(rank):
        x = pad_axis(graph, x, 2 + axis, begins[axis], ends[axis], "constant", value)
    return x, [0] * 2 * rank


def _conv(graph: Graph, node: Node) -> Value:
    w, rank = node[1], len(node[1].shape) - 2
    x = graph.tensor(node[0])
    kernel = [int(size) for size in w.shape[2:]]
    x, pads = padded(graph, node, x, kernel)
    strides, dilations = window(node, kernel)
    groups = node.attribute("group", 1)
    channels = w.shape[1] * groups
    if is_known(x.shape[1]) and x.shape[1] != channels:
        raise ModelError(
            f"its input has {x.shape[1]} channels and its weight is made for {channels}"
        )
    if min(pads) < 0:
        raise ModelError(f"the negative padding {pads} cannot be compiled")
    if rank not in (1, 2) or not isinstance(w, Constant):
        return _float_conv(graph, node, x, strides, pads, dilations, groups)
    if rank == 1:
        x = graph.emit(op.expand_dims(x.expr, [2]))
        shape = (w.shape[0], w.shape[1], 1, w.shape[2])
        w = Constant(f"{w.name}.2d", w.weight.map(shape, lambda array: array.reshape(shape)))
        strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
    bias = node.optional(2)
    fused = bias if isinstance(bias, Constant) else None
    reason = f"grouped convolution (groups={groups})" if groups > 1 else ""
    layer = graph.add_layer(node, w.shape, reason=reason, has_bias=fused is not None)
    y = graph.emit(
        ops.conv(
            x.expr,
            graph.builder.emit(graph.weight(w)),
            fused and graph.expr(fused),
            layer=layer,
            strides=strides,
            padding=pads,
            dilation=dilations,
            groups=groups,
        )
    )
    if bias is not None and fused is None:
        y = _add_bias(graph, y, bias)
    return graph.emit(op.squeeze(y.expr, [2])) if rank == 1 else y


def _add_bias(graph: Graph, y: Tensor, bias: Value) -> Tensor:
    column = graph.reshape(bias, [1, bias.shape[0], *[1] * (len(y.shape) - 2)])
    return graph.emit(op.add(y.expr, column.expr))


def _float_conv(
    graph: Graph,
    node: Node,
    x: Tensor,
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
) -> Value:
    rank = len(x.shape) - 2
    functions = {1: op.nn.conv1d, 2: op.nn.conv2d, 3: op.nn.conv3d}
    if rank not in functions:
        raise ModelError(f"a convolution of {rank} dimensions cannot be compiled")
    reason = (
        f"{rank}-D convolution" if isinstance(node[1], Constant) else "its weight is not a constant"
    )
    graph.add_layer(
        node, [s if is_known(s) else -1 for s in node[1].shape], reason=reason, has_bias=node.has(2)
    )
    y = graph.emit(
        functions[rank](x.expr, weight_expr(graph, node[1]), strides, pads, dilations, groups)
    )
    return _add_bias(graph, y, node[2]) if node.has(2) else y


def weight_expr(graph: Graph, value: Value) -> Expr:
    """The weight of a layer that stays float: in the weight table if it is a constant."""
    return (
        graph.builder.emit(graph.weight(value))
        if isinstance(value, Constant)
        else graph.expr(value)
    )


def _conv_transpose(graph: Graph, node: Node) -> Value:
    """Zeros between the inputs, then a convolution with the kernel turned round: relax's own op."""
    x, w = graph.tensor(node[0]), node[1]
    kernel = [int(size) for size in w.shape[2:]]
    rank = len(kernel)
    if rank not in (1, 2, 3):
        raise ModelError(f"a transposed convolution of {rank} dimensions cannot be compiled")
    strides, dilations = window(node, kernel)
    w, kernel = _spread(graph, w, kernel, dilations)
    extra = node.attribute("output_padding", [0] * rank)
    pads, extra = _transposed_pads(graph, node, x, kernel, strides, extra)
    groups = node.attribute("group", 1)
    graph.add_layer(
        node,
        [s if is_known(s) else -1 for s in w.shape],
        reason="transposed convolution",
        has_bias=node.has(2),
    )
    functions = {1: op.nn.conv1d_transpose, 2: op.nn.conv2d_transpose, 3: op.nn.conv3d_transpose}
    crop = [max(p, 0) for p in pads]
    weight = weight_expr(graph, w)
    if rank == 1:  # a dilated or grouped 1-D kernel has no implementation of its own
        x, weight = (graph.emit(op.expand_dims(e, [2])) for e in (x.expr, weight))
        y = graph.emit(
            op.nn.conv2d_transpose(
                x.expr,
                weight.expr,
                [1, *strides],
                [0, crop[0], 0, crop[1]],
                [0, *extra],
                groups=groups,
            )
        )
        y = graph.emit(op.squeeze(y.expr, [2]))
    else:
        y = graph.emit(functions[rank](x.expr, weight, strides, crop, extra, groups=groups))
    for axis in range(rank):
        before, after = (max(-pads[i], 0) for i in (axis, rank + axis))
        if before or after:
            y = pad_axis(graph, y, 2 + axis, before, after, "constant", 0.0)
    return _add_bias(graph, y, node[2]) if node.has(2) else y


def _spread(
    graph: Graph, w: Value, kernel: list[int], dilations: list[int]
) -> tuple[Value, list[int]]:
    """The kernel with its dilation written out as zeros."""
    if all(d == 1 for d in dilations):
        return w, kernel
    if not isinstance(w, Constant):
        raise ModelError("a dilated transposed convolution needs a constant weight")
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    shape = (*w.shape[:2], *reach)
    places = (slice(None), slice(None), *(slice(None, None, d) for d in dilations))

    def spread(array: Array) -> Array:
        out = np.zeros(shape, array.dtype)
        out[places] = array
        return out

    return Constant(f"{w.name}.dilated", w.weight.map(shape, spread)), reach


def _transposed_pads(
    graph: Graph, node: Node, x: Tensor, kernel: list[int], strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """(pads, output padding): output_shape and auto_pad decide the pads; what they add to the
    end is negative."""
    rank = len(kernel)
    auto, wanted = node.attribute("auto_pad", "NOTSET"), node.attribute("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID", ""):
        return list(node.attribute("pads", [0] * 2 * rank)), list(extra)
    begins, ends = [], []
    for axis in range(rank):
        full = strides[axis] * (x.shape[2 + axis] - 1) + extra[axis] + kernel[axis]
        goal = wanted[-rank:][axis] if wanted else x.shape[2 + axis] * strides[axis]
        total = graph.shapes.simple(full - goal)
        if not is_known(total):
            raise ModelError(
                f"its padding, {text(total)}, is not known before the run: fix the input shape"
            )
        small = int(total / 2)
        begins.append(small if auto != "SAME_LOWER" else total - small)
        ends.append(total - begins[-1])
    return begins + ends, list(extra)


CONVERTERS: dict[str, Converter] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
