"""Integer operators of standard ONNX: QuantizeLinear, DequantizeLinear of activations, integer
matmul.

A DequantizeLinear of a constant never comes here: it is folded to a float weight, which is then
quantized as asked. What is left are activations, whose rounding is kept as the model says it.
"""

from __future__ import annotations

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_linear import plain_matmul
from lbcompiler.frontend.onnx_weights import element_type

op = relax.op
RANGE = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def _along(graph: Graph, node: Node, value: Value, rank: int) -> Tensor:
    """A scale or zero point, one number or one a slice of `axis`, beside the tensor."""
    if value.shape in ((), (1,)):
        return graph.reshape(value, [])
    if node.attribute("block_size", 0) or len(value.shape) != 1:
        raise ModelError(
            "activations quantized in blocks cannot be compiled from Q/DQ: remove the pair and "
            "choose --act-format"
        )
    axis = node.attribute("axis", 1) % rank
    return graph.reshape(value, [value.shape[0] if i == axis else 1 for i in range(rank)])


def _quantize(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    zero = node.optional(2)
    code = node.attribute("output_dtype", 0)
    dtype = zero.dtype if zero is not None else element_type(code) if code else "uint8"
    if dtype not in RANGE:
        raise ModelError(
            f"activations quantized to {dtype} cannot be compiled from Q/DQ: remove the pair and "
            "choose --act-format"
        )
    low, high = (graph.scalar(limit, "float32") for limit in RANGE[dtype])
    scaled = op.round(op.divide(x.expr, _along(graph, node, node[1], len(x.shape)).expr))
    if zero is not None:
        offset = _along(graph, node, zero, len(x.shape))
        scaled = op.add(scaled, op.astype(offset.expr, "float32"))
    return graph.emit(op.astype(op.minimum(op.maximum(scaled, low), high), dtype))


def _dequantize(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    if x.dtype not in (*RANGE, "int32"):
        raise ModelError(f"activations of {x.dtype} cannot be compiled")
    value = op.astype(x.expr, "float32")
    zero = node.optional(2)
    if zero is not None:
        offset = _along(graph, node, zero, len(x.shape))
        value = op.subtract(value, op.astype(offset.expr, "float32"))
    return graph.emit(op.multiply(value, _along(graph, node, node[1], len(x.shape)).expr))


def _matmul_integer(graph: Graph, node: Node) -> Value:
    sides = []
    for i in range(2):
        value = op.astype(graph.expr(node[i]), "int32")
        zero = node.optional(2 + i)
        if zero is not None:
            offset = op.astype(graph.expr(zero), "int32")
            if i == 0 and len(zero.shape) == 1 and zero.shape != (1,):
                offset = op.expand_dims(offset, [1])  # one a row of A
            value = op.subtract(value, offset)
        sides.append(graph.emit(value))
    graph.add_layer(node, (), reason="integer matmul of the source model")
    return plain_matmul(graph, *sides)


CONVERTERS: dict[str, Converter] = {
    "DequantizeLinear": _dequantize,
    "MatMulInteger": _matmul_integer,
    "QuantizeLinear": _quantize,
}
