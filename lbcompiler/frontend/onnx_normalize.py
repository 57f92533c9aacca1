"""Normalizations and softmax. Where Relax has the operator it is used: a target schedules it as
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Expr, Graph, Node, Tensor, Value
from lbcompiler.frontend.shapes import is_known

op = relax.op


def _batch_normalization(graph: Graph, node: Node) -> Value:
    if node.attribute("training_mode", 0) or any(node.wants(i) for i in range(1, 5)):
        raise ModelError(
            "batch normalization in training mode cannot be compiled: export the model for "
            "inference"
        )
    x, parameters = graph.tensor(node[0]), [graph.expr(node[i]) for i in range(1, 5)]
    graph.add_batch_norm(node)
    norm = op.nn.batch_norm(x.expr, *parameters, 1, node.attribute("epsilon", 1e-5), training=False)
    return graph.emit(relax.TupleGetItem(graph.builder.emit(norm), 0))


def _layer_normalization(graph: Graph, node: Node) -> Sequence[Value | None]:
    x, scale = graph.tensor(node[0]), node[1]
    axis = node.attribute("axis", -1) % len(x.shape)
    epsilon = node.attribute("epsilon", 1e-5)
    axes = list(range(axis, len(x.shape)))
    if node.wants(1) or node.wants(2) or tuple(scale.shape) != x.shape[axis:]:
        normal, mean, inverse = normalized(graph, x, axes, epsilon)
        return [affine(graph, normal, scale, node.optional(2)), mean, inverse]
    return [layer_norm(graph, x, scale, node.optional(2), axes, epsilon)]


def layer_norm(
    graph: Graph, x: Tensor, scale: Value, bias: Value | None, axes: list[int], epsilon: float
) -> Tensor:
    gamma = graph.expr(scale)
    beta = op.zeros_like(gamma) if bias is None else graph.expr(bias)
    return graph.emit(
        op.nn.layer_norm(
            x.expr, gamma, graph.builder.emit(beta) if bias is None else beta, axes, epsilon
        )
    )


def normalized(
    graph: Graph, x: Tensor, axes: list[int], epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + epsilon) with the mean and that factor; the mean goes first,
    so nothing cancels."""
    mean = graph.emit(op.mean(x.expr, axes, True))
    centered = graph.emit(op.subtract(x.expr, mean.expr))
    variance = op.mean(op.multiply(centered.expr, centered.expr), axes, True)
    spread = op.sqrt(op.add(variance, graph.scalar(epsilon, "float32")))
    inverse = graph.emit(op.divide(graph.scalar(1, "float32"), spread))
    return graph.emit(op.multiply(centered.expr, inverse.expr)), mean, inverse


def affine(graph: Graph, x: Tensor, scale: Value | None, bias: Value | None) -> Tensor:
    for value, fn in ((scale, op.multiply), (bias, op.add)):
        if value is not None:
            a, b = graph.broadcast(x, value)
            x = graph.emit(fn(a.expr, b.expr))
    return x


def _per_channel(graph: Graph, value: Value, rank: int) -> Tensor:
    """A vector of channels beside (N, C, ...)."""
    return graph.reshape(value, [value.shape[0], *[1] * (rank - 2)])


def _instance_normalization(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    rank = len(x.shape)
    normal, _, _ = normalized(graph, x, list(range(2, rank)), node.attribute("epsilon", 1e-5))
    return affine(graph, normal, *(_per_channel(graph, node[i], rank) for i in (1, 2)))


def _group_normalization(graph: Graph, node: Node) -> Value:
    """Scale and bias are one a group before opset 21, one a channel since."""
    x, groups = graph.tensor(node[0]), node.attribute("num_groups")
    n, channels, *rest = x.shape
    if not is_known(channels):
        raise ModelError("its number of channels is not known before the run")
    split = graph.reshape(x, [n, groups, channels // groups, *rest])
    normal, _, _ = normalized(
        graph, split, list(range(2, len(split.shape))), node.attribute("epsilon", 1e-5)
    )
    if node.opset < 21:
        parameters = [graph.reshape(node[i], [groups, *[1] * (len(rest) + 1)]) for i in (1, 2)]
        return graph.reshape(affine(graph, normal, *parameters), x.shape)
    out = graph.reshape(normal, x.shape)
    return affine(graph, out, *(_per_channel(graph, node[i], len(x.shape)) for i in (1, 2)))


def _rms_normalization(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    axis = node.attribute("axis", -1) % len(x.shape)
    return rms_norm(
        graph, x, node[1], list(range(axis, len(x.shape))), node.attribute("epsilon", 1e-5)
    )


def rms_norm(graph: Graph, x: Tensor, scale: Value, axes: list[int], epsilon: float) -> Tensor:
    if axes[0] > 0 and tuple(scale.shape) == tuple(x.shape[axes[0] :]):
        return graph.emit(op.nn.rms_norm(x.expr, graph.expr(scale), axes, epsilon))
    square = op.mean(op.multiply(x.expr, x.expr), axes, True)
    spread = op.sqrt(op.add(square, graph.scalar(epsilon, "float32")))
    return affine(graph, graph.emit(op.divide(x.expr, spread)), scale, None)


def _lp_normalization(graph: Graph, node: Node) -> Value:
    x, axis = graph.tensor(node[0]), node.attribute("axis", -1)
    if node.attribute("p", 2) == 1:
        norm = op.sum(op.abs(x.expr), [axis], True)
    else:
        norm = op.sqrt(op.sum(op.multiply(x.expr, x.expr), [axis], True))
    zero = graph.scalar(0, "float32")
    norm = graph.emit(norm)
    safe = op.where(op.equal(norm.expr, zero), graph.scalar(1, "float32"), norm.expr)
    return graph.emit(op.divide(x.expr, safe))


def _local_response(graph: Graph, node: Node) -> Value:
    """x / (bias + alpha/size * sum of squares over neighbouring channels)^beta."""
    x, size = graph.tensor(node[0]), node.attribute("size")
    before, after = (size - 1) // 2, math.ceil((size - 1) / 2)
    square = graph.emit(op.multiply(x.expr, x.expr))
    n, channels, *rest = x.shape
    flat = graph.reshape(square, [n, 1, channels, graph.shapes.product(rest)])
    width = [0, 0, 0, 0, before, after, 0, 0]
    wide = graph.emit(op.nn.pad(flat.expr, width, "constant", 0.0))
    mean = op.nn.avg_pool2d(wide.expr, [size, 1], [1, 1], [0, 0, 0, 0])
    mean = graph.reshape(graph.emit(mean), x.shape)
    alpha, beta, bias = (
        graph.scalar(node.attribute(n, d), "float32")
        for n, d in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    )
    return graph.emit(
        op.divide(x.expr, op.power(op.add(bias, op.multiply(alpha, mean.expr)), beta))
    )


def _softmax(fn: Callable[[Expr, int], Expr]) -> Converter:
    def convert(graph: Graph, node: Node) -> Value:
        x = graph.tensor(node[0])
        rank = len(x.shape)
        if node.opset >= 13:
            return graph.emit(fn(x.expr, node.attribute("axis", -1) % rank))
        axis = node.attribute("axis", 1) % rank
        if axis == rank - 1:
            return graph.emit(fn(x.expr, axis))
        halves = [graph.shapes.product(half) for half in (x.shape[:axis], x.shape[axis:])]
        flat = graph.reshape(x, halves)  # before opset 13 all axes from this one on are one
        return graph.reshape(graph.emit(fn(flat.expr, 1)), x.shape)

    return convert


def _hardmax(x: Expr, axis: int) -> Expr:
    """1 at the first maximum."""
    extent = x.ty.shape.values[axis]
    shape = [extent if i == axis else 1 for i in range(len(x.ty.shape.values))]
    at = op.reshape(op.arange(0, extent, 1, "int64"), shape)
    return op.astype(op.equal(at, op.argmax(x, axis, True)), "float32")


CONVERTERS: dict[str, Converter] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "Hardmax": _softmax(_hardmax),
    "InstanceNormalization": _instance_normalization,
    "LRN": _local_response,
    "LayerNormalization": _layer_normalization,
    "LogSoftmax": _softmax(op.nn.log_softmax),
    "LpNormalization": _lp_normalization,
    "RMSNormalization": _rms_normalization,
    "Softmax": _softmax(op.nn.softmax),
}
