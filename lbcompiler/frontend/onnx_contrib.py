"""com.microsoft operators that onnxruntime's optimizers leave in models: fused norms,
activations, block-quantized matmuls.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Constant, Converter, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_linear import dense, matmul, turned
from lbcompiler.frontend.onnx_normalize import layer_norm, rms_norm
from lbcompiler.ir.model import Array, Weight

op = relax.op


def _added(graph: Graph, a: Value, b: Value | None) -> Tensor:
    if b is None:
        return graph.tensor(a)
    x, y = graph.broadcast(a, b)
    return graph.emit(op.add(x.expr, y.expr))


def _simplified_layer_norm(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    axis = node.attribute("axis", -1) % len(x.shape)
    return rms_norm(
        graph, x, node[1], list(range(axis, len(x.shape))), node.attribute("epsilon", 1e-5)
    )


def _skip_layer_norm(graph: Graph, node: Node) -> Sequence[Value | None]:
    """norm(input + skip [+ bias]); the sum is the fourth output."""
    total = _added(graph, _added(graph, node[0], node[1]), node.optional(4))
    epsilon = node.attribute("epsilon", 1e-5)
    out = layer_norm(graph, total, node[2], node.optional(3), [len(total.shape) - 1], epsilon)
    return [out, None, None, total]


def _skip_simplified_layer_norm(graph: Graph, node: Node) -> Sequence[Value | None]:
    total = _added(graph, _added(graph, node[0], node[1]), node.optional(3))
    out = rms_norm(graph, total, node[2], [len(total.shape) - 1], node.attribute("epsilon", 1e-5))
    return [out, None, None, total]


def _gelu(graph: Graph, node: Node, *, tanh: bool = False) -> Value:
    x = _added(graph, node[0], node.optional(1))
    return graph.emit((op.nn.gelu_tanh if tanh else op.nn.gelu)(x.expr))


def _quick_gelu(graph: Graph, node: Node) -> Value:
    x, alpha = graph.expr(node[0]), graph.scalar(node.attribute("alpha", 1.702), "float32")
    return graph.emit(op.multiply(x, op.sigmoid(op.multiply(x, alpha))))


def _fused_matmul(graph: Graph, node: Node) -> Value:
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise ModelError("transBatchA and transBatchB cannot be compiled")
    a = turned(graph, node[0]) if node.attribute("transA", 0) else node[0]
    b = turned(graph, node[1]) if node.attribute("transB", 0) else node[1]
    y, alpha = matmul(graph, node, a, b), node.attribute("alpha", 1.0)
    return y if alpha == 1 else graph.emit(op.multiply(y.expr, graph.scalar(alpha, "float32")))


def _matmul_n_bits(graph: Graph, node: Node) -> Value:
    """The weight as the floats its codes stand for: 4 or 8 bits, blocks along K, low nibble
    first."""
    n, k, block, bits = (node.attribute(name) for name in ("N", "K", "block_size", "bits"))
    codes, scales, zeros = node[1], node[2], node.optional(3)
    known = [value for value in (codes, scales, zeros) if value is not None]
    if (
        bits not in (None, 4, 8)
        or node.has(4)
        or not all(isinstance(value, Constant) for value in known)
    ):
        raise ModelError(
            "only constant weights of 4 or 8 bits without group indices can be compiled"
        )
    load = partial(_dequantized, codes, scales, zeros, n, k, block, bits or 4)  # type: ignore[arg-type]
    name = codes.name if isinstance(codes, Constant) else node.name
    w = Constant(f"{name}.float", Weight((n, k), "float32", load))
    bias = node.optional(5)
    return dense(
        graph, node, graph.tensor(node[0]), w, bias if isinstance(bias, Constant) else None
    )


def _dequantized(
    codes: Constant, scales: Constant, zeros: Constant | None, n: int, k: int, block: int, bits: int
) -> Array:
    blocks = -(-k // block)
    values = _unpacked(codes.array(), n * blocks, bits).reshape(n, blocks, block).astype(np.float32)
    if zeros is None:
        offset: Array = np.float32(1 << (bits - 1)) * np.ones((n, blocks), np.float32)
    elif zeros.dtype == "uint8":
        offset = _unpacked(zeros.array(), n, bits)[:, :blocks].astype(np.float32)
    else:
        offset = zeros.array().reshape(n, blocks)
    scale = scales.array().reshape(n, blocks, 1)
    return np.ascontiguousarray(((values - offset[..., None]) * scale).reshape(n, -1)[:, :k])


def _unpacked(packed: Array, rows: int, bits: int) -> Array:
    data = packed.reshape(rows, -1)
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(rows, -1)


def _rotary(graph: Graph, node: Node) -> Value:
    """Rotate pairs by the cached angles of their positions; halves pair up unless interleaved."""
    if node.attribute("is_packed_batching", 0) or node.attribute("scale", 1.0) != 1.0:
        raise ModelError("packed batching and scale cannot be compiled")
    x, shape = graph.tensor(node[0]), node[0].shape
    if len(shape) == 3:
        heads, width = node.attribute("num_heads", 0), node.attribute("rotary_embedding_dim", 0)
        half = node[2].shape[-1]
        heads = heads or graph.shapes.floor_divide(shape[2], width or 2 * half)
        x = graph.transpose(
            graph.reshape(x, [*shape[:2], heads, graph.shapes.floor_divide(shape[2], heads)]),
            [0, 2, 1, 3],
        )
    positions = graph.tensor(node[1])
    if positions.shape == (1,):
        raise ModelError("positions given as one offset cannot be compiled: give one a token")
    cos, sin = (
        graph.emit(
            op.expand_dims(op.take(graph.expr(node[i]), positions.expr, 0, mode="clip"), [1])
        )
        for i in (2, 3)
    )
    out = rotated(graph, x, cos, sin, interleaved=bool(node.attribute("interleaved", 0)))
    return out if len(shape) == 4 else graph.reshape(graph.transpose(out, [0, 2, 1, 3]), shape)


def rotated(graph: Graph, x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """x (..., D) by angles (..., R/2): the first R of D turn, the rest stays."""
    half, last = int(cos.shape[-1]), len(x.shape) - 1

    def cut(begin: int, end: int, step: int = 1) -> Tensor:
        sliced = op.strided_slice(x.expr, [last], [begin], [end], [step], assume_inbound=True)
        return graph.emit(sliced)

    first = cut(0, 2 * half, 2) if interleaved else cut(0, half)
    second = cut(1, 2 * half, 2) if interleaved else cut(half, 2 * half)
    turned_first = op.subtract(
        op.multiply(cos.expr, first.expr), op.multiply(sin.expr, second.expr)
    )
    turned_second = op.add(op.multiply(sin.expr, first.expr), op.multiply(cos.expr, second.expr))
    if interleaved:
        pair = graph.emit(
            op.stack([graph.emit(turned_first).expr, graph.emit(turned_second).expr], axis=last + 1)
        )
        out = graph.reshape(pair, [*x.shape[:-1], 2 * half])
    else:
        out = graph.emit(op.concat([turned_first, turned_second], last))
    if x.shape[-1] == 2 * half:
        return out
    rest = cut(2 * half, int(x.shape[-1]))
    return graph.emit(op.concat([out.expr, rest.expr], last))


CONVERTERS: dict[str, Converter] = {
    "BiasGelu": _gelu,
    "FastGelu": partial(_gelu, tanh=True),
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "MatMulNBits": _matmul_n_bits,
    "QuickGelu": _quick_gelu,
    "RotaryEmbedding": _rotary,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_simplified_layer_norm,
}
IN_MAIN_DOMAIN: dict[str, Converter] = {"SimplifiedLayerNormalization": _simplified_layer_norm}
