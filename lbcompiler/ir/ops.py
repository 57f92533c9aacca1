"""The ops we add to Relax: what they mean, their type inference, and one constructor each.

| op | meaning |
|---|---|
| `lbc.weight(; name)` | the float or packed tensor `name` of the model's weight table |
| `lbc.dense(x, w[, b]; layer)` | x @ w^T + b, w (N, K): what every linear becomes first |
| `lbc.conv(x, w[, b]; layer, strides, ...)` | NCHW x OIHW convolution, constant weight |
| `lbc.im2col(x; kernel, strides, ...)` | NHWC -> (N, OH, OW, kh*kw*C), to be a dense's input |
| `lbc.depthwise(x, w[, b]; layer, strides, ...)` | NHWC x (kh, kw, C): each channel by itself |
| `lbc.hadamard(x; size, seed)` | a `Rotation` along the last axis; a seed of -1 is no signs |
| `lbc.quantize(x; format, scale_rule)` | float -> (codes, scales[, tensor scale]) |
| `lbc.fused_quantize(x[, other][, gamma][, beta]; ...)` | quantize of what a `Prologue` computes |
| `lbc.dequantize(codes, scales[, tensor_scale]; format)` | its inverse, f32 |
| `lbc.linear(x..., w...[, b]; ...)` | the block-scaled GEMM that a target has a kernel for |
| `lbc.attention(q, k, v[, mask]; scale, ...)` | softmax(q k^T * scale + mask) v, heads grouped |
| `lbc.hardswish(x)` | x * clip(x + 3, 0, 6) / 6, which Relax has no op for |
| `lbc.append(state, rows, shape; axes)` | `state` cut to `shape`, its last rows new, *in place* |

Weights are named, not held: the IR stays small enough to read and dump, a pass may replace a weight
by another name, and no float tensor is in memory before a quantizer asks for it
(`ir.model.Weight`). A tensor scale is one number for a weight, () , and one a row for an
activation, (..., 1): a result never depends on what else is in the batch.

`RegisterOp` is a private name of TVM 0.27's FFI; it is used here and nowhere else.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tvm
import tvm.ir._ffi_api as _private
from tvm import relax
from tvm.ir import Op

from lbcompiler.formats import BlockFormat, format_named, stored_format
from lbcompiler.ir.prologue import Prologue, prologue_of
from lbcompiler.ir.rotation import Rotation

Expr = Any  # tvm.relax.Expr; TVM ships no type stubs
Type = Any
Infer = Callable[[Any, Any], Any]

ANALYZER = tvm.sym.Analyzer()
FLOAT = "float32"  # the weight format of a linear that is not quantized
EPILOGUES = ("none", "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "hardswish")


def _register(name: str, inputs: int, infer: Infer, doc: str, legalize: Infer | None = None) -> Any:
    """Register a pure op once; a second import (pytest's importlib mode) finds it there."""
    if name in Op.list_op_names():
        return Op.get(name)
    _private.RegisterOp(name, doc)
    op = Op.get(name)
    op.set_num_inputs(inputs)
    tvm.ir.register_op_attr(name, "FPurity", True)
    tvm.ir.register_op_attr(name, "FInferType", infer)
    if legalize is not None:
        tvm.ir.register_op_attr(name, "FLegalize", legalize)
    return op


def _call(op: Any, args: Sequence[Expr], **attrs: object) -> Expr:
    return relax.Call(op, list(args), tvm.ir.attrs.make_node("ir.DictAttrs", **attrs))


def is_call_to(expr: Expr, op: Any) -> bool:
    """Whether `expr` is a call of one of our ops (or of any Relax op)."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, Op) and expr.op == op


def _tensor(shape: Sequence[Any], dtype: str) -> Type:
    return relax.TensorType(list(shape), dtype)


def _infer_weight(call: Any, _: Any) -> Type:
    return _tensor([int(d) for d in call.attrs["shape"]], str(call.attrs["dtype"]))


def _infer_dense(call: Any, _: Any) -> Type:
    x, w = (argument.ty for argument in call.args[:2])
    return _tensor([*x.shape.values[:-1], w.shape.values[0]], x.dtype)


def spatial(extent: Any, kernel: int, stride: int, pads: int, dilation: int) -> Any:
    """Output extent of a convolution along one axis, `pads` in total, in its simplest form."""
    span = extent + (pads - dilation * (kernel - 1) - 1)
    return ANALYZER.simplify(tvm.tirx.floordiv(span, tvm.tirx.const(stride, "int64")) + 1)


def _windows(extents: Sequence[Any], kernel: Sequence[int], attrs: Any) -> tuple[Any, Any]:
    """Output height and width for the input's."""
    top, left, bottom, right = (int(p) for p in attrs["padding"])
    pads = (top + bottom, left + right)
    height, width = (
        spatial(
            extents[i],
            kernel[i],
            int(attrs["strides"][i]),
            pads[i],
            int(attrs["dilation"][i]),
        )
        for i in range(2)
    )
    return height, width


def _infer_conv(call: Any, _: Any) -> Type:
    x, w = (argument.ty for argument in call.args[:2])
    height, width = _windows(x.shape.values[2:], [int(d) for d in w.shape.values[2:]], call.attrs)
    return _tensor([x.shape.values[0], w.shape.values[0], height, width], x.dtype)


def _infer_im2col(call: Any, _: Any) -> Type:
    x, kernel = call.args[0].ty, [int(k) for k in call.attrs["kernel"]]
    n, *extents, channels = x.shape.values
    height, width = _windows(extents, kernel, call.attrs)
    return _tensor([n, height, width, channels * (kernel[0] * kernel[1])], x.dtype)


def _infer_depthwise(call: Any, _: Any) -> Type:
    x, w = (argument.ty for argument in call.args[:2])
    n, *extents, channels = x.shape.values
    height, width = _windows(extents, [int(d) for d in w.shape.values[:2]], call.attrs)
    return _tensor([n, height, width, channels], x.dtype)


def _infer_quantize(call: Any, _: Any) -> Type:
    x, fmt = call.args[0].ty, format_named(str(call.attrs["format"]))
    *rows, k = x.shape.values
    parts = [_tensor([*rows, k], "uint8"), _tensor([*rows, fmt.blocks(int(k))], "uint8")]
    if fmt.has_tensor_scale:
        parts.append(_tensor([*rows, 1], "float32"))
    return relax.TupleType(parts)


def _infer_fused_quantize(call: Any, builder: Any) -> Type:
    x, kept = call.args[0].ty, prologue_of(call.attrs).kept
    rows = [_tensor(x.shape.values, "float32")] * kept
    return relax.TupleType([*_infer_quantize(call, builder).fields, *rows])


def _infer_dequantize(call: Any, _: Any) -> Type:
    return _tensor(call.args[0].ty.shape.values, "float32")


def _infer_linear(call: Any, _: Any) -> Type:
    return _tensor([*call.args[0].ty.shape.values[:-1], int(call.attrs["n"])], "float32")


def _infer_attention(call: Any, _: Any) -> Type:
    q, _k, v = (argument.ty for argument in call.args[:3])
    extents = dict(zip(str(call.attrs["layouts"][0]), q.shape.values, strict=True))
    heads, depth = int(call.attrs["heads"]), v.shape.values[-1]
    return _tensor([extents["B"], extents["S"], heads, depth], "float32")


def _infer_same(call: Any, _: Any) -> Type:
    return call.args[0].ty


def _legalize_hardswish(builder: Any, call: Any) -> Expr:
    def hardswish(x: Any) -> Any:
        def value(*i: Any) -> Any:
            clipped = tvm.tirx.max(tvm.tirx.min(x(*i) + 3.0, 6.0), 0.0)
            return x(*i) * clipped * (1 / 6)

        return tvm.te.compute(x.shape, value, "hardswish")

    return builder.call_te(hardswish, call.args[0])


def _infer_append(call: Any, _: Any) -> Type:
    return _tensor(call.args[2].values, call.args[0].ty.dtype)


WEIGHT = _register("lbc.weight", 0, _infer_weight, "A tensor of the weight table, by name.")
DENSE = _register("lbc.dense", -1, _infer_dense, "x @ w^T + b in float.")
CONV = _register("lbc.conv", -1, _infer_conv, "NCHW convolution with a constant weight.")
IM2COL = _register("lbc.im2col", 1, _infer_im2col, "The windows of a convolution as rows.")
DEPTHWISE = _register("lbc.depthwise", -1, _infer_depthwise, "NHWC depthwise convolution.")
QUANTIZE = _register("lbc.quantize", 1, _infer_quantize, "Float to block-scaled codes.")
FUSED_QUANTIZE = _register(
    "lbc.fused_quantize", -1, _infer_fused_quantize, "Rows computed, kept in float, quantized."
)
DEQUANTIZE = _register("lbc.dequantize", -1, _infer_dequantize, "Block-scaled codes to float.")
LINEAR = _register("lbc.linear", -1, _infer_linear, "Block-scaled GEMM with epilogue.")
ATTENTION = _register("lbc.attention", -1, _infer_attention, "Softmax attention of float heads.")
HADAMARD = _register("lbc.hadamard", 1, _infer_same, "Block Hadamard along the last axis.")
HARDSWISH = _register(
    "lbc.hardswish", 1, _infer_same, "x * clip(x + 3, 0, 6) / 6.", _legalize_hardswish
)

APPEND = _register(
    "lbc.append", 3, _infer_append, "Rows written behind those of a state, in place."
)


def weight(name: str, shape: Sequence[int], dtype: str = "float32") -> Expr:
    return _call(WEIGHT, [], name=name, shape=[int(d) for d in shape], dtype=dtype)


def dense(x: Expr, w: Expr, bias: Expr | None = None, *, layer: str) -> Expr:
    """(..., K) x (N, K) [+ (N,)] -> (..., N)."""
    return _call(DENSE, [x, w] if bias is None else [x, w, bias], layer=layer)


def conv(
    x: Expr,
    w: Expr,
    bias: Expr | None = None,
    *,
    layer: str,
    strides: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Expr:
    """(N, C, H, W) x (O, C/groups, kh, kw) [+ (O,)] -> (N, O, OH, OW); padding: top left bottom
    right.
    """
    return _call(
        CONV,
        [x, w] if bias is None else [x, w, bias],
        layer=layer,
        strides=[int(s) for s in strides],
        padding=[int(p) for p in padding],
        dilation=[int(d) for d in dilation],
        groups=int(groups),
    )


def im2col(
    x: Expr,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Expr:
    """(N, H, W, C) -> (N, OH, OW, kh*kw*C); the channel runs fastest, zeros where padded."""
    attrs = {"kernel": kernel, "strides": strides, "padding": padding, "dilation": dilation}
    return _call(IM2COL, [x], **{name: [int(v) for v in value] for name, value in attrs.items()})


def depthwise(
    x: Expr,
    w: Expr,
    bias: Expr | None = None,
    *,
    layer: str,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Expr:
    """(N, H, W, C) x (kh, kw, C) [+ (C,)] -> (N, OH, OW, C), float32."""
    attrs = {"strides": strides, "padding": padding, "dilation": dilation}
    lists = {name: [int(v) for v in value] for name, value in attrs.items()}
    return _call(DEPTHWISE, [x, w] if bias is None else [x, w, bias], layer=layer, **lists)


def hadamard(x: Expr, rotation: Rotation) -> Expr:
    """x R, (..., K) -> (..., K) float32; K is a multiple of the rotation's size."""
    return _call(HADAMARD, [x], **rotation.attributes())


def quantize(x: Expr, *, fmt: BlockFormat, scale_rule: str) -> Expr:
    """(..., K) f32 -> (codes (..., K), scales (..., ceil(K/block))[, tensor scale (..., 1)])."""
    return _call(QUANTIZE, [x], format=fmt.name, scale_rule=scale_rule)


def fused_quantize(
    operands: Sequence[Expr], prologue: Prologue, *, fmt: BlockFormat, scale_rule: str
) -> Expr:
    """`quantize` of the prologue's row; behind its parts the float results: the sum, the row."""
    return _call(
        FUSED_QUANTIZE,
        operands,
        format=fmt.name,
        scale_rule=scale_rule,
        **prologue.attributes(),
    )


def dequantize(parts: Sequence[Expr], *, fmt: BlockFormat) -> Expr:
    """The inverse of `quantize`: the parts of its tuple -> (..., K) float32."""
    return _call(DEQUANTIZE, parts, format=fmt.name)


def attention(
    q: Expr,
    k: Expr,
    v: Expr,
    mask: Expr | None = None,
    *,
    heads: int,
    key_heads: int,
    scale: float,
    causal: bool = False,
    layouts: Sequence[str] = ("BSHD", "BSHD", "BSHD"),
    first_heads: Sequence[int] = (0, 0, 0),
) -> Expr:
    """softmax(q k^T * scale + mask) v for each head -> (B, S, heads, depth of v) float32.

    q, k and v have their axes in the order of their layout, such as "BSHD" or "BHSD": batch,
    position, head, and the numbers of a head last. The heads taken of each are those from its
    first head on; `heads / key_heads` neighbours of q share one of k and v. The
    mask has four axes (B, heads, queries, keys), an extent of 1 for all that it has not. When
    causal, the last query sees every key, the one before it all but the last, and so on."""
    return _call(
        ATTENTION,
        [q, k, v] if mask is None else [q, k, v, mask],
        heads=int(heads),
        key_heads=int(key_heads),
        scale=float(scale),
        causal=bool(causal),
        layouts=list(layouts),
        first_heads=[int(first) for first in first_heads],
    )


def hardswish(x: Expr) -> Expr:
    """x * clip(x + 3, 0, 6) / 6, elementwise."""
    return _call(HARDSWISH, [x])


def append(state: Expr, rows: Expr, shape: Sequence[Any], *, axes: Sequence[int]) -> Expr:
    """The first shape[0] rows of `state`, the last of them permute_dims(rows, axes): the same
    memory. `state` (capacity, *shape[1:]) must have room for them and is not read any more.
    """
    return _call(APPEND, [state, rows, relax.ShapeExpr(list(shape))], axes=[int(a) for a in axes])


def linear(
    activation: Sequence[Expr],
    weight_parts: Sequence[Expr],
    bias: Expr | None = None,
    *,
    layer: str,
    n: int,
    weight_format: BlockFormat | None,
    act_format: BlockFormat | None,
    epilogue: str = "none",
) -> Expr:
    """epilogue(dequantize(activation) @ dequantize(weight)^T [+ bias]) -> (..., n) float32.

    `activation` is (x,) in float when `act_format` is None (weight-only), else the parts of
    `quantize`. `weight_parts` are codes, scales[, tensor scale], or (w,) in float when
    `weight_format` is None; after `pack_weights` they are in the target's own layout."""
    return _call(
        LINEAR,
        [*activation, *weight_parts, *([] if bias is None else [bias])],
        layer=layer,
        n=int(n),
        weight_format=FLOAT if weight_format is None else weight_format.name,
        act_format="none" if act_format is None else act_format.name,
        bias=bias is not None,
        epilogue=epilogue,
    )


def linear_operands(call: Any) -> tuple[list[Expr], list[Expr], Expr | None]:
    """(activation parts, weight parts, bias) of an `lbc.linear`: the inverse of `linear`."""
    args = list(call.args)
    bias = args.pop() if bool(call.attrs["bias"]) else None
    act_format = str(call.attrs["act_format"])
    split = 1 if act_format == "none" else format_named(act_format).parts
    return args[:split], args[split:], bias


def linear_formats(call: Any) -> tuple[BlockFormat | None, BlockFormat | None]:
    """(weight format or None for float, activation format or None for float) of an `lbc.linear`."""
    weight, act = str(call.attrs["weight_format"]), str(call.attrs["act_format"])
    return (
        None if weight == FLOAT else stored_format(weight),
        None if act == "none" else format_named(act),
    )
