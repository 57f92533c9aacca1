"""Converters of torch's matrix products: with a constant weight, `lbc.dense` or `lbc.conv`.

Attention is written out as matmul, softmax, matmul, so that masks, causality and grouped heads need
no kernel of their own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_build import LARGEST, Build, Expr
from lbcompiler.frontend.torch_shapes import Extent
from lbcompiler.frontend.torch_values import Constant
from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer

op = relax.op
Converter = Callable[..., Any]
TWO_ACTIVATIONS = "matmul of two activations"


def linear(b: Build, x: Expr, weight: Expr, bias: Expr | None = None) -> Expr:
    constant = b.constant_of(weight)
    if constant is None:
        product = matmul(b, x, b.emit(op.permute_dims(weight)))
        return product if bias is None else op.add(b.emit(product), bias)
    return _dense(b, x, constant, bias)


def _dense(b: Build, x: Expr, weight: Constant, bias: Expr | None) -> Expr:
    """x @ weight^T + bias, weight (N, K)."""
    name = b.layer_name(weight)
    b.record(Layer(name, "Linear", weight.shape, b.node.name, bias is not None))
    return ops.dense(b.cast(x, "float32"), b.weight(weight), bias, layer=name)


def matmul(b: Build, x: Expr, y: Expr) -> Expr:
    """x @ y; a matrix of the weight table on the right makes it a linear layer."""
    constant = b.constant_of(y)
    if constant is not None and _is_matrix(constant):
        return b.reshape(b.emit(_dense(b, x, _matrix(constant).transposed(), None)), b.out_shape)
    left, right = b.shape(x), b.shape(y)
    if len(left) == len(right) == 1:
        return op.sum(b.emit(op.multiply(x, y)))
    _record_matmul(b, b.layer_name(), left, right, b.constant_of(x) or constant)
    return op.matmul(x, y)


def _is_matrix(constant: Constant) -> bool:
    return (
        constant.dtype == "float32"
        and len(constant.shape) >= 2
        and math.prod(constant.shape[:-2]) == 1
    )


def _matrix(constant: Constant) -> Constant:
    """(1, ..., 1, K, N) as (K, N)."""
    if len(constant.shape) == 2:
        return constant
    return constant.reshaped(*constant.shape[-2:])


def _record_matmul(
    b: Build, name: str, left: Sequence[Extent], right: Sequence[Extent], weight: Constant | None
) -> None:
    shape = (right[-1], right[-2]) if len(right) > 1 else (1, right[-1])
    fixed = tuple(extent for extent in shape if isinstance(extent, int))
    reason = TWO_ACTIVATIONS
    if weight is not None:
        reason = f"the constant of shape {weight.shape} is no matrix on the right"
    size = fixed if len(fixed) == 2 else ()
    b.record(Layer(name, "MatMul", size, b.node.name, reason=reason))


def addmm(b: Build, bias: Expr, x: Expr, y: Expr, beta: Any = 1, alpha: Any = 1) -> Expr:
    constant = b.constant_of(y)
    vector = len(b.shape(bias)) == 1
    if constant is not None and _is_matrix(constant) and vector and beta == alpha == 1:
        return _dense(b, x, constant.transposed(), bias)
    product = b.emit(matmul(b, x, y))
    if alpha != 1:
        product = b.emit(op.multiply(product, b.scalar(alpha, "float32")))
    if beta != 1:
        bias = b.emit(op.multiply(bias, b.scalar(beta, "float32")))
    return op.add(product, bias)


def scaled_dot_product_attention(
    b: Build,
    query: Expr,
    key: Expr,
    value: Expr,
    mask: Expr | None,
    _dropout: float,
    is_causal: bool,
    scale: float | None,
    grouped: bool,
) -> Expr:
    """softmax(query @ key^T * scale + mask) @ value; grouped: several query heads share a key head.

    A row whose every key is masked gives zeros, as torch does.
    """
    *_, length, depth = b.shape(query)
    keys = b.shape(key)[-2]
    scale = 1 / math.sqrt(int(depth)) if scale is None else scale
    query = b.emit(op.multiply(query, b.scalar(scale, "float32")))
    folded = grouped and not b.shapes.same(b.shape(query)[-3], b.shape(key)[-3])
    scores_shape = [*b.shape(query)[:-1], keys]
    if folded:
        query = _fold_heads(b, query, key)
    base = b.layer_name()
    turned = b.emit(op.permute_dims(key, _last_two_swapped(len(b.shape(key)))))
    _record_matmul(b, f"{base}.scores", b.shape(query), b.shape(turned), None)
    scores = b.reshape(b.emit(op.matmul(query, turned)), scores_shape)
    if is_causal:
        mask = _causal(b, length, keys)
    weights = _masked_softmax(b, scores, mask, has_empty_rows=not is_causal)
    if folded:
        weights = _fold_heads(b, weights, key)
    _record_matmul(b, f"{base}.values", b.shape(weights), b.shape(value), None)
    return b.reshape(b.emit(op.matmul(weights, value)), b.out_shape)


def _fold_heads(b: Build, x: Expr, key: Expr) -> Expr:
    """(..., heads, L, D) -> (..., key heads, group * L, D): no key is copied for its group."""
    *batch, heads, length, depth = b.shape(x)
    key_heads = b.shape(key)[-3]
    group = int(heads) // int(key_heads)
    return b.reshape(x, [*batch, key_heads, b.shapes.simplify(group * length), depth])


def _last_two_swapped(rank: int) -> list[int]:
    return [*range(rank - 2), rank - 1, rank - 2]


def _causal(b: Build, rows: Extent, columns: Extent) -> Expr:
    row = b.reshape(b.iota(rows), [rows, 1])
    return b.emit(op.less_equal(b.reshape(b.iota(columns), [1, columns]), row))


def _masked_softmax(b: Build, scores: Expr, mask: Expr | None, *, has_empty_rows: bool) -> Expr:
    if mask is None:
        return b.emit(op.nn.softmax(scores, -1))
    if b.dtype(mask) != "bool":
        return b.emit(op.nn.softmax(b.emit(op.add(scores, b.cast(mask, "float32"))), -1))
    lowest, zero = b.scalar(-LARGEST, "float32"), b.scalar(0.0, "float32")  # -inf rows: NaN
    weights = b.emit(op.nn.softmax(b.emit(op.where(mask, scores, lowest)), -1))
    return b.emit(op.where(mask, weights, zero)) if has_empty_rows else weights


def _pair(value: Any, count: int) -> list[int]:
    values = [int(v) for v in (value if isinstance(value, list) else [value])]
    return values * count if len(values) == 1 else values


def convolution(
    b: Build,
    x: Expr,
    weight: Expr,
    bias: Expr | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Expr:
    """aten.convolution: the form all others are written as."""
    count = len(b.shape(weight)) - 2
    strides, dilations = _pair(stride, count), _pair(dilation, count)
    pads = _pads(padding, dilations, b.shape(weight)[2:], count)
    if count not in (1, 2):
        raise ModelError(f"convolutions over {count} dimensions are not supported: 1 and 2 are")
    shape = b.out_shape
    lifted = len(b.shape(x)) == count + 1  # without a batch dimension
    if lifted:
        x = b.reshape(x, [1, *b.shape(x)])
    if count == 1:
        x = b.reshape(x, [*b.shape(x)[:2], 1, b.shape(x)[2]])
        strides, dilations, pads = [1, *strides], [1, *dilations], [(0, 0), *pads]
    flat = [pad[0] for pad in pads] + [pad[1] for pad in pads]
    if transposed:
        extra = [0] * (2 - count) + _pair(output_padding, count)
        y = _transposed(b, x, weight, bias, strides, flat, dilations, extra, groups)
    else:
        y = _convolution(b, x, weight, bias, strides, flat, dilations, groups, count)
    return b.reshape(y, shape) if lifted or count == 1 else y


def _pads(
    padding: Any, dilations: list[int], kernel: Sequence[int], count: int
) -> list[tuple[int, int]]:
    """(before, after) of each axis; "same" puts the odd one after."""
    if padding == "valid":
        return [(0, 0)] * count
    if padding == "same":
        totals = [d * (int(k) - 1) for d, k in zip(dilations, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(pad, pad) for pad in _pair(padding, count)]


def _convolution(
    b: Build,
    x: Expr,
    weight: Expr,
    bias: Expr | None,
    strides: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    count: int,
) -> Expr:
    constant = b.constant_of(weight)
    if constant is None:
        raise ModelError("the weight of a convolution must be a parameter")
    name = b.layer_name(constant)
    reason = ""
    if groups > 1:
        kind = "depthwise" if constant.shape[1] == 1 else "grouped"
        reason = f"{kind} convolution (groups={groups})"
    if count == 1:
        outputs, inputs, width = constant.shape
        constant = constant.reshaped(outputs, inputs, 1, width)
    b.record(
        Layer(name, f"Conv{count}d", constant.shape, b.node.name, bias is not None, reason=reason)
    )
    return b.emit(
        ops.conv(
            x,
            b.weight(constant),
            bias,
            layer=name,
            strides=strides,
            padding=padding,
            dilation=dilation,
            groups=groups,
        )
    )


def _transposed(
    b: Build,
    x: Expr,
    weight: Expr,
    bias: Expr | None,
    strides: list[int],
    padding: list[int],
    dilation: list[int],
    output_padding: list[int],
    groups: int,
) -> Expr:
    shape = b.shape(weight)
    if len(shape) == 3:
        weight = b.reshape(weight, [shape[0], shape[1], 1, shape[2]])
    constant = b.constant_of(weight)
    name = b.layer_name(constant)
    b.record(
        Layer(
            name,
            f"ConvTranspose{len(shape) - 2}d",
            tuple(int(extent) for extent in shape),
            b.node.name,
            bias is not None,
            reason="transposed convolution",
        )
    )
    y = b.emit(
        op.nn.conv2d_transpose(
            x,
            weight,
            strides=strides,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
        )
    )
    if bias is None:
        return y
    return b.emit(op.add(y, b.reshape(bias, [1, *b.shape(bias), 1, 1])))


def forward_convolution(
    b: Build,
    x: Expr,
    weight: Expr,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Expr:
    return convolution(b, x, weight, bias, stride, padding, dilation, False, 0, groups)


def transposed_convolution(
    b: Build,
    x: Expr,
    weight: Expr,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Expr:
    return convolution(b, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


CONVERTERS: dict[str, Converter] = {
    "addmm": addmm,
    "bmm": matmul,
    "conv1d": forward_convolution,
    "conv2d": forward_convolution,
    "conv_transpose1d": transposed_convolution,
    "conv_transpose2d": transposed_convolution,
    "convolution": convolution,
    "linear": linear,
    "matmul": matmul,
    "mm": matmul,
    "mv": matmul,
    "scaled_dot_product_attention": scaled_dot_product_attention,
}
