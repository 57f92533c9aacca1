"""Linears: MatMul, Gemm, Einsum. One with a constant weight becomes `lbc.dense`, w stored (N,
K).
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_fold import transposed
from lbcompiler.frontend.onnx_graph import Constant, Converter, Graph, Node, Tensor, Value
from lbcompiler.frontend.shapes import Size, is_known
from lbcompiler.ir import ops

op = relax.op
TWO_ACTIVATIONS = "matmul of two activations"


def _matmul(graph: Graph, node: Node) -> Value:
    return matmul(graph, node, node[0], node[1])


def matmul(graph: Graph, node: Node, a: Value, b: Value) -> Tensor:
    """numpy's matmul of a and b, as a dense layer where one of them is a constant matrix."""
    if a.dtype != "float32":
        return plain_matmul(graph, a, b)
    right, left = as_matrix(a, b), as_matrix(b, a)
    if right is not None and len(a.shape) >= 1:
        return dense(graph, node, graph.tensor(a), transposed(right, (1, 0)))
    if left is not None:
        return _const_at_left(graph, node, left, graph.tensor(b))
    constant = next((v for v in (a, b) if isinstance(v, Constant)), None)
    reason = (
        TWO_ACTIVATIONS if constant is None else f"batched constant weight {list(constant.shape)}"
    )
    graph.add_layer(node, layer_shape(a, b), reason=reason)
    return plain_matmul(graph, a, b)


def layer_shape(a: Value, b: Value) -> tuple[int, int]:
    """(N, K) of a @ b; -1 for a dynamic dimension."""
    sizes = (b.shape[-1] if len(b.shape) > 1 else 1, a.shape[-1])
    return tuple(int(size) if is_known(size) else -1 for size in sizes)  # type: ignore[return-value]


def as_matrix(other: Value, weight: Value) -> Constant | None:
    """The constant as one matrix, if it is one and the product with `other` keeps its rank."""
    if not isinstance(weight, Constant) or isinstance(other, Constant) or len(weight.shape) < 2:
        return None
    if len(weight.shape) == 2:
        return weight
    lead, matrix = weight.shape[:-2], weight.shape[-2:]
    if any(size != 1 for size in lead) or len(other.shape) < len(weight.shape):
        return None
    return Constant(
        f"{weight.name}.matrix", weight.weight.map(matrix, lambda array: array.reshape(matrix))
    )


def dense(graph: Graph, node: Node, x: Tensor, w: Constant, bias: Constant | None = None) -> Tensor:
    """x (..., K) through w (N, K) and a bias (N,)."""
    x = _with_last(graph, x, w.shape[1])
    shape = x.shape
    layer = graph.add_layer(node, w.shape, has_bias=bias is not None)
    rows = x if len(shape) > 1 else graph.reshape(x, [1, *shape])
    y = graph.emit(
        ops.dense(
            rows.expr, graph.builder.emit(graph.weight(w)), bias and graph.expr(bias), layer=layer
        )
    )
    return y if len(shape) > 1 else graph.reshape(y, [w.shape[0]])


def _with_last(graph: Graph, x: Tensor, k: int) -> Tensor:
    """x whose last dimension is k: the model promises it where it is dynamic."""
    if is_known(x.shape[-1]) and x.shape[-1] != k:
        raise ModelError(f"its operands have {x.shape[-1]} and {k} along the dimension they share")
    return x if is_known(x.shape[-1]) else graph.cast_shape(x, [*x.shape[:-1], k])


def _const_at_left(graph: Graph, node: Node, w: Constant, x: Tensor) -> Tensor:
    """w @ x = (x^T @ w^T)^T: w (M, K) is a weight as it is stored."""
    if len(x.shape) == 1:
        return dense(graph, node, x, w)
    swap = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
    return graph.transpose(dense(graph, node, graph.transpose(x, swap), w), swap)


def plain_matmul(graph: Graph, a: Value, b: Value) -> Tensor:
    """relax.matmul with the shared and the batch dimensions written equally."""
    x, y = graph.tensor(a), graph.tensor(b)
    k = graph.shapes.unify([x.shape[-1], y.shape[-2 if len(y.shape) > 1 else -1]])
    x = _with(graph, x, len(x.shape) - 1, k)
    y = _with(graph, y, max(len(y.shape) - 2, 0), k)
    for i in range(3, min(len(x.shape), len(y.shape)) + 1):
        pair = [tensor.shape[-i] for tensor in (x, y)]
        if any(is_known(size) and size == 1 for size in pair):
            continue
        best = graph.shapes.unify(pair)
        x, y = (_with(graph, tensor, len(tensor.shape) - i, best) for tensor in (x, y))
    return graph.emit(op.matmul(x.expr, y.expr))


def _with(graph: Graph, x: Tensor, axis: int, size: Size) -> Tensor:
    if graph.shapes.same_form(x.shape[axis], size):
        return x
    if is_known(x.shape[axis]):
        raise ModelError(f"its operands have {x.shape[axis]} and {size} in a dimension they share")
    return graph.cast_shape(x, [size if i == axis else s for i, s in enumerate(x.shape)])


def _gemm(graph: Graph, node: Node) -> Value:
    """alpha * A' B' + beta * C."""
    a, b, c = node[0], node[1], node.optional(2)
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    a = turned(graph, a) if node.attribute("transA", 0) else a
    b = turned(graph, b) if node.attribute("transB", 0) else b
    if beta == 0:
        c = None
    if isinstance(b, Constant) and not isinstance(a, Constant) and a.dtype == "float32":
        w = transposed(b, (1, 0))
        w = w if alpha == 1 else _scaled(w, alpha)
        bias = _bias(c, beta, w.shape[0])
        y = dense(graph, node, graph.tensor(a), w, bias)
        c = None if bias is not None else c
    else:
        y = matmul(graph, node, a, b)
        y = y if alpha == 1 else graph.emit(op.multiply(y.expr, graph.scalar(alpha, y.dtype)))
    if c is None:
        return y
    scaled = c if beta == 1 else graph.emit(op.multiply(graph.expr(c), graph.scalar(beta, c.dtype)))
    left, right = graph.broadcast(y, scaled)
    return graph.emit(op.add(left.expr, right.expr))


def turned(graph: Graph, value: Value) -> Value:
    """A matrix (its last two axes) transposed."""
    rank = len(value.shape)
    swap = [*range(rank - 2), rank - 1, rank - 2]
    return transposed(value, swap) if isinstance(value, Constant) else graph.transpose(value, swap)


def _scaled(w: Constant, alpha: float) -> Constant:
    return Constant(
        f"{w.name}.scaled", w.weight.map(w.shape, lambda array: array * array.dtype.type(alpha))
    )


def _bias(c: Value | None, beta: float, n: int) -> Constant | None:
    """C as a bias vector, if it is a constant row."""
    if not isinstance(c, Constant) or c.size != n or (c.shape and c.shape[-1] != n):
        return None
    if beta == 1 and c.shape == (n,):
        return c
    return Constant(
        f"{c.name}.bias",
        c.weight.map((n,), lambda array: array.reshape(n) * array.dtype.type(beta)),
    )


def _einsum(graph: Graph, node: Node) -> Value:
    """Two operands that contract as a matmul does; other equations through relax.einsum."""
    equation = node.attribute("equation").replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    terms = inputs.split(",")
    if not arrow or "." in equation or len(terms) != 2 or any(len(set(t)) != len(t) for t in terms):
        return _relax_einsum(graph, node, equation)
    a, b = terms
    batch = [i for i in output if i in a and i in b]
    shared = [i for i in a if i in b and i not in output]
    rows = [i for i in a if i not in b]
    columns = [i for i in b if i not in a]
    if set(rows + columns) - set(output):
        return _relax_einsum(graph, node, equation)
    x = _grouped(graph, node[0], a, batch, rows, shared)
    y = _grouped(graph, node[1], b, batch, shared, columns)
    sizes = {**dict(zip(a, node[0].shape, strict=True)), **dict(zip(b, node[1].shape, strict=True))}
    out = matmul(graph, node, x, y)
    order = [*batch, *rows, *columns]
    wide = graph.reshape(out, [sizes[i] for i in order])
    return (
        wide if order == list(output) else graph.transpose(wide, [order.index(i) for i in output])
    )


def _grouped(
    graph: Graph,
    value: Value,
    term: str,
    batch: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
) -> Value:
    """The operand as (batch..., prod(first), prod(second))."""
    order = [term.index(i) for i in (*batch, *first, *second)]
    shape = [value.shape[i] for i in order]
    n = len(batch)
    halves = [
        graph.shapes.product(part) for part in (shape[n : n + len(first)], shape[n + len(first) :])
    ]
    if not isinstance(value, Constant):
        moved = value if order == sorted(order) else graph.transpose(value, order)
        return graph.reshape(moved, [*shape[:n], *halves])
    target = tuple(int(size) for size in (*shape[:n], *halves))
    return _reshaped(transposed(value, order), target)


def _reshaped(constant: Constant, shape: tuple[int, ...]) -> Constant:
    if constant.shape == shape:
        return constant
    weight = constant.weight.map(shape, lambda array: array.reshape(shape))
    return Constant(f"{constant.name}.grouped", weight)


def _relax_einsum(graph: Graph, node: Node, equation: str) -> Value:
    operands = [graph.expr(value) for value in node.inputs if value is not None]
    if "->" not in equation:
        letters = sorted({i for i in equation if equation.count(i) == 1 and i.isalpha()})
        equation = f"{equation}->{'...' if '...' in equation else ''}{''.join(letters)}"
    graph.add_layer(node, (), reason="einsum that is not one matmul")
    return graph.emit(op.einsum(tuple(operands), equation))


CONVERTERS: dict[str, Converter] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
