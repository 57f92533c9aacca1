"""Element by element: arithmetic, comparisons, activations, casts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Constant, Converter, Expr, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_weights import computed_type, element_type

op = relax.op
KEEPS_SIGN = {"Add", "Mul", "Max", "Min"}  # nonnegative integers in, nonnegative out


def _unary(fn: Callable[[Expr], Expr]) -> Converter:
    return lambda graph, node: graph.emit(fn(graph.expr(node[0])))


def _binary(fn: Callable[[Expr, Expr], Expr]) -> Converter:
    """Two operands, or more from left to right (Max, Min, Sum)."""

    def convert(graph: Graph, node: Node) -> Value:
        out = graph.tensor(node[0])
        positive = node.op in KEEPS_SIGN and "int" in out.dtype
        positive = positive and all(graph.is_nonnegative(v) for v in node.inputs if v is not None)
        for other in node.inputs[1:]:
            if other is None:
                raise ModelError("an operand is missing")
            a, b = graph.broadcast(out, other)
            out = graph.emit(fn(a.expr, b.expr), nonnegative=positive)
        return out

    return convert


def _mean(graph: Graph, node: Node) -> Value:
    total = graph.tensor(_binary(op.add)(graph, node))  # type: ignore[arg-type]
    return graph.emit(op.divide(total.expr, graph.scalar(len(node.inputs), total.dtype)))


def _power(graph: Graph, node: Node) -> Value:
    base = graph.tensor(node[0])
    exponent = node[1]
    if isinstance(exponent, Constant) and exponent.size == 1 and not math.prod(exponent.shape) > 1:
        short = _small_power(graph, base, float(exponent.array().ravel()[0]))
        if short is not None and len(exponent.shape) <= len(base.shape):
            return graph.emit(short)
    a, b = graph.broadcast(base, exponent)
    power = op.power(_float(a), _float(b))
    return graph.emit(power if a.dtype == "float32" else op.astype(op.round(power), a.dtype))


def _float(value: Tensor) -> Expr:
    return value.expr if value.dtype == "float32" else op.astype(value.expr, "float32")


def _small_power(graph: Graph, base: Tensor, exponent: float) -> Expr | None:
    """x^2, x^3 and the roots without a call of pow."""
    x = base.expr
    if exponent == 2:
        return op.multiply(x, x)
    if exponent == 3:
        return op.multiply(op.multiply(x, x), x)
    if base.dtype != "float32":
        return None
    one = graph.scalar(1, "float32")
    return {0.5: op.sqrt(x), -0.5: op.divide(one, op.sqrt(x)), -1.0: op.divide(one, x)}.get(
        exponent
    )


def _divide(graph: Graph, node: Node) -> Value:
    """Integers divide toward zero."""
    a, b = graph.broadcast(node[0], _divisor(graph, node[1]))
    positive = all(graph.is_nonnegative_tensor(node[i]) for i in range(2))
    return graph.emit(op.divide(a.expr, b.expr), nonnegative=positive)


def _divisor(graph: Graph, value: Value) -> Value:
    """An integer divisor with 1 for 0: a division by zero would end the process."""
    if "int" not in value.dtype:
        return value
    if isinstance(value, Constant) and value.array().all():
        return value
    x, zero = graph.expr(value), graph.scalar(0, value.dtype)
    return graph.emit(op.where(op.equal(x, zero), graph.scalar(1, value.dtype), x))


def _mod(graph: Graph, node: Node) -> Value:
    a, b = graph.broadcast(node[0], _divisor(graph, node[1]))
    if not node.attribute("fmod", 0):
        return graph.emit(op.floor_mod(a.expr, b.expr))
    quotient = op.divide(a.expr, b.expr)  # integers divide toward zero already
    whole = op.trunc(quotient) if a.dtype == "float32" else quotient
    return graph.emit(op.subtract(a.expr, op.multiply(whole, b.expr)))


def _where(graph: Graph, node: Node) -> Value:
    condition, a, b = graph.broadcast(*[node[i] for i in range(3)])
    positive = (
        all(graph.is_nonnegative(v) for v in (node[1], node[2])) if "int" in a.dtype else False
    )
    return graph.emit(op.where(condition.expr, a.expr, b.expr), nonnegative=positive)


def _cast(graph: Graph, node: Node) -> Value:
    """Half and double are float32 here; float to integer goes toward zero."""
    value = node[0]
    like = node.optional(1)
    dtype = computed_type(element_type(node.attribute("to"))) if like is None else like.dtype
    if dtype == value.dtype:
        return value
    x = graph.expr(value)
    if dtype == "bool":
        return graph.emit(op.not_equal(x, graph.scalar(0, value.dtype)))
    if dtype.startswith(("float8", "float4", "int4", "uint4", "int2", "uint2")):
        raise ModelError(f"a cast of run-time values to {dtype} cannot be compiled")
    return graph.emit(op.astype(x, dtype), nonnegative=graph.is_nonnegative_tensor(value))


def _clip(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    low, high = node.optional(1), node.optional(2)
    out = x.expr
    for limit, name, fn in ((low, "min", op.maximum), (high, "max", op.minimum)):
        bound = node.attribute(name)
        if limit is not None:
            out = fn(out, graph.expr(limit))
        elif bound is not None:
            out = fn(out, graph.scalar(bound, x.dtype))
    return graph.emit(out) if out is not x.expr else x


def _with(name: str, default: float, fn: Callable[[Expr, Expr], Expr]) -> Converter:
    """An activation with one float attribute."""
    return lambda graph, node: graph.emit(
        fn(graph.expr(node[0]), graph.scalar(node.attribute(name, default), "float32"))
    )


def _zero(x: Expr) -> Expr:
    return relax.const(np.float32(0), "float32")


def _select(x: Expr, positive: Expr, negative: Expr) -> Expr:
    return op.where(op.greater(x, _zero(x)), positive, negative)


def _elu(x: Expr, alpha: Expr) -> Expr:
    one = relax.const(np.float32(1), "float32")
    low = op.minimum(x, _zero(x))  # exp of the other branch would overflow
    return _select(x, x, op.multiply(alpha, op.subtract(op.exp(low), one)))


def _celu(x: Expr, alpha: Expr) -> Expr:
    one = relax.const(np.float32(1), "float32")
    low = op.minimum(x, _zero(x))
    return _select(x, x, op.multiply(alpha, op.subtract(op.exp(op.divide(low, alpha)), one)))


def _selu(graph: Graph, node: Node) -> Value:
    alpha = graph.scalar(node.attribute("alpha", 1.67326319217681884765625), "float32")
    gamma = graph.scalar(node.attribute("gamma", 1.05070102214813232421875), "float32")
    return graph.emit(op.multiply(gamma, _elu(graph.expr(node[0]), alpha)))


def _hard_sigmoid(graph: Graph, node: Node) -> Value:
    return graph.emit(
        _hard_sigmoid_of(
            graph, graph.expr(node[0]), node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
        )
    )


def _hard_sigmoid_of(graph: Graph, x: Expr, alpha: float, beta: float) -> Expr:
    line = op.add(op.multiply(x, graph.scalar(alpha, "float32")), graph.scalar(beta, "float32"))
    return op.minimum(op.maximum(line, _zero(x)), graph.scalar(1, "float32"))


def _hard_swish(graph: Graph, node: Node) -> Value:
    x = graph.expr(node[0])
    return graph.emit(op.multiply(x, _hard_sigmoid_of(graph, x, 1 / 6, 0.5)))


def _softplus(x: Expr) -> Expr:
    """max(x, 0) + log(1 + exp(-|x|)): no overflow."""
    one = relax.const(np.float32(1), "float32")
    tail = op.log(op.add(one, op.exp(op.negative(op.abs(x)))))
    return op.add(op.maximum(x, _zero(x)), tail)


def _prelu(graph: Graph, node: Node) -> Value:
    x, slope = graph.broadcast(node[0], node[1])
    return graph.emit(
        op.where(op.less(x.expr, graph.scalar(0, x.dtype)), op.multiply(x.expr, slope.expr), x.expr)
    )


def _gelu(graph: Graph, node: Node) -> Value:
    tanh = node.attribute("approximate", "none") == "tanh"
    return graph.emit((op.nn.gelu_tanh if tanh else op.nn.gelu)(graph.expr(node[0])))


def _swish(graph: Graph, node: Node) -> Value:
    x, alpha = graph.expr(node[0]), node.attribute("alpha", 1.0)
    if alpha == 1.0:
        return graph.emit(op.nn.silu(x))
    return graph.emit(op.multiply(x, op.sigmoid(op.multiply(x, graph.scalar(alpha, "float32")))))


def _shrink(graph: Graph, node: Node) -> Value:
    x = graph.tensor(node[0])
    bias, edge = (
        graph.scalar(node.attribute(n, d), x.dtype) for n, d in (("bias", 0.0), ("lambd", 0.5))
    )
    zero = graph.scalar(0, x.dtype)
    below = op.where(op.less(x.expr, op.negative(edge)), op.add(x.expr, bias), zero)
    return graph.emit(op.where(op.greater(x.expr, edge), op.subtract(x.expr, bias), below))


def _is_inf(graph: Graph, node: Node) -> Value:
    x = graph.expr(node[0])
    signs = []
    if node.attribute("detect_positive", 1):
        signs.append(op.equal(x, graph.scalar(math.inf, "float32")))
    if node.attribute("detect_negative", 1):
        signs.append(op.equal(x, graph.scalar(-math.inf, "float32")))
    if not signs:
        return graph.emit(
            op.full(
                graph.type(graph.tensor(node[0]).shape, "bool").shape,
                graph.scalar(0, "bool"),
                "bool",
            )
        )
    return graph.emit(signs[0] if len(signs) == 1 else op.logical_or(*signs))


def _bit_shift(graph: Graph, node: Node) -> Value:
    a, b = graph.broadcast(node[0], node[1])
    left = node.attribute("direction") == "LEFT"
    return graph.emit((op.left_shift if left else op.right_shift)(a.expr, b.expr))


def _reciprocal(x: Expr) -> Expr:
    return op.divide(relax.const(np.float32(1), "float32"), x)


def _softsign(x: Expr) -> Expr:
    return op.divide(x, op.add(relax.const(np.float32(1), "float32"), op.abs(x)))


def _identity(graph: Graph, node: Node) -> Value:
    return node[0]


def _dropout(graph: Graph, node: Node) -> Sequence[Value | None]:
    """At inference dropout passes its input on; the mask is all true."""
    if not node.wants(1):
        return [node[0]]
    x = graph.tensor(node[0])
    mask = op.full(graph.type(x.shape, "bool").shape, graph.scalar(1, "bool"), "bool")
    return [x, graph.emit(mask)]


CONVERTERS: dict[str, Converter] = {
    "Abs": _unary(op.abs),
    "Acos": _unary(op.acos),
    "Acosh": _unary(op.acosh),
    "Add": _binary(op.add),
    "And": _binary(op.logical_and),
    "Asin": _unary(op.asin),
    "Asinh": _unary(op.asinh),
    "Atan": _unary(op.atan),
    "Atanh": _unary(op.atanh),
    "BitShift": _bit_shift,
    "BitwiseAnd": _binary(op.bitwise_and),
    "BitwiseNot": _unary(op.bitwise_not),
    "BitwiseOr": _binary(op.bitwise_or),
    "BitwiseXor": _binary(op.bitwise_xor),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _unary(op.ceil),
    "Celu": _with("alpha", 1.0, _celu),
    "Clip": _clip,
    "Cos": _unary(op.cos),
    "Cosh": _unary(op.cosh),
    "Div": _divide,
    "Dropout": _dropout,
    "Elu": _with("alpha", 1.0, _elu),
    "Equal": _binary(op.equal),
    "Erf": _unary(op.erf),
    "Exp": _unary(op.exp),
    "Floor": _unary(op.floor),
    "Gelu": _gelu,
    "Greater": _binary(op.greater),
    "GreaterOrEqual": _binary(op.greater_equal),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Identity": _identity,
    "IsInf": _is_inf,
    "IsNaN": _unary(op.isnan),
    "LeakyRelu": _with(
        "alpha", 0.01, lambda x, a: op.where(op.less(x, _zero(x)), op.multiply(x, a), x)
    ),
    "Less": _binary(op.less),
    "LessOrEqual": _binary(op.less_equal),
    "Log": _unary(op.log),
    "Max": _binary(op.maximum),
    "Mean": _mean,
    "Min": _binary(op.minimum),
    "Mish": _unary(lambda x: op.multiply(x, op.tanh(_softplus(x)))),
    "Mod": _mod,
    "Mul": _binary(op.multiply),
    "Neg": _unary(op.negative),
    "Not": _unary(op.logical_not),
    "Or": _binary(op.logical_or),
    "Pow": _power,
    "PRelu": _prelu,
    "Reciprocal": _unary(_reciprocal),
    "Relu": _unary(op.nn.relu),
    "Round": _unary(op.round),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _unary(op.sigmoid),
    "Sign": _unary(op.sign),
    "Sin": _unary(op.sin),
    "Sinh": _unary(op.sinh),
    "Softplus": _unary(_softplus),
    "Softsign": _unary(_softsign),
    "Sqrt": _unary(op.sqrt),
    "Sub": _binary(op.subtract),
    "Sum": _binary(op.add),
    "Swish": _swish,
    "Tan": _unary(op.tan),
    "Tanh": _unary(op.tanh),
    "ThresholdedRelu": _with("alpha", 1.0, lambda x, a: op.where(op.greater(x, a), x, _zero(x))),
    "Where": _where,
    "Xor": _binary(op.logical_xor),
}
