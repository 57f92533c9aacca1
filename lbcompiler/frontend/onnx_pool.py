"""Pooling: windows of a fixed size, and the global ones as reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_conv import padded, window
from lbcompiler.frontend.onnx_graph import Converter, Expr, Graph, Node, Tensor, Value

op = relax.op
MAX = {1: op.nn.max_pool1d, 2: op.nn.max_pool2d, 3: op.nn.max_pool3d}
AVERAGE = {1: op.nn.avg_pool1d, 2: op.nn.avg_pool2d, 3: op.nn.avg_pool3d}


def _max_pool(graph: Graph, node: Node) -> Value:
    if node.wants(1):
        raise ModelError("the indices of a max pooling cannot be compiled, only its values")
    x = graph.tensor(node[0])
    kernel = node.attribute("kernel_shape")
    lowest = -math.inf if x.dtype == "float32" else 0
    x, pads = padded(graph, node, x, kernel, lowest)
    return _pool(graph, node, x, MAX, pads, count_padding=False)


def _average_pool(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    padded_x, pads = padded(graph, node, x, node.attribute("kernel_shape"))
    if padded_x is not x:
        raise ModelError("its automatic padding depends on a dynamic size: fix the input shape")
    return _pool(
        graph, node, x, AVERAGE, pads, count_padding=bool(node.attribute("count_include_pad", 0))
    )


def _pool(
    graph: Graph,
    node: Node,
    x: Tensor,
    functions: dict[int, Callable[..., Expr]],
    pads: list[int],
    *,
    count_padding: bool,
) -> Tensor:
    kernel = node.attribute("kernel_shape")
    if len(kernel) not in functions:
        raise ModelError(f"pooling of {len(kernel)} dimensions cannot be compiled")
    strides, dilations = window(node, kernel)
    pool = functions[len(kernel)](
        x.expr,
        kernel,
        strides,
        pads,
        dilations,
        bool(node.attribute("ceil_mode", 0)),
        count_padding,
    )
    return graph.emit(pool)


def _lp_pool(graph: Graph, node: Node) -> Value:
    """(sum |x|^p)^(1/p): the average over the window, padding counted, times its size."""
    p, kernel = node.attribute("p", 2), node.attribute("kernel_shape")
    x = graph.tensor(node[0])
    x, pads = padded(graph, node, x, kernel)
    power = graph.emit(op.power(op.abs(x.expr), graph.scalar(p, "float32")))
    mean = _pool(graph, node, power, AVERAGE, pads, count_padding=True)
    total = op.multiply(mean.expr, graph.scalar(math.prod(kernel), "float32"))
    return graph.emit(op.power(total, graph.scalar(1 / p, "float32")))


def _global(fn: Callable[..., Expr]) -> Converter:
    def convert(graph: Graph, node: Node) -> Value:
        x = graph.tensor(node[0])
        return graph.emit(fn(x.expr, list(range(2, len(x.shape))), keepdims=True))

    return convert


def _global_lp(graph: Graph, node: Node) -> Value:
    x, p = graph.tensor(node[0]), graph.scalar(node.attribute("p", 2), "float32")
    total = op.sum(op.power(op.abs(x.expr), p), list(range(2, len(x.shape))), keepdims=True)
    return graph.emit(op.power(total, op.divide(graph.scalar(1, "float32"), p)))


CONVERTERS: dict[str, Converter] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global(op.mean),
    "GlobalLpPool": _global_lp,
    "GlobalMaxPool": _global(op.max),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
