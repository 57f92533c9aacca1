"""How ops become PrimFuncs where TVM's way is wrong for symbolic shapes, or slow.

A windowed op keeps its windows as axes of their own (six dimensions of an im2col, five of a grouped
convolution) and is reshaped afterwards, which costs nothing: an index made of divisions and
remainders would neither vectorize nor be understood.
"""

from collections.abc import Sequence
from typing import Any

from tvm import relax, sym, te, tirx, topi

from lbcompiler.ir.ops import spatial
from lbcompiler.targets.cpu import legalize_axis
from lbcompiler.targets.cpu.append import append_kernel
from lbcompiler.targets.cpu.hadamard import legalize_hadamard
from lbcompiler.targets.cpu.legalization import Builder, Legalization, default, integers
from lbcompiler.targets.cpu.schedule.expressions import Expr


def _four(padding: Sequence[int]) -> list[int]:
    """top, left, bottom, right of one, two or four numbers."""
    return list(padding) * (4 // len(padding))


def _view(builder: Builder, call: Any) -> Any:
    """Any op that only changes the shape -> a reshape, which runs no code."""
    return relax.op.reshape(call.args[0], call.ty.shape)


def _simple(extent: Expr) -> Expr:
    return sym.Analyzer().simplify(extent)


def _inside(index: Expr, extent: Expr) -> Expr:
    return tirx.all(index >= 0, index < extent)


def _padded(x: Any, pads: Sequence[int], first: int = 2) -> Any:
    """With zeros around height and width, which are axes `first` and the next."""
    top, left, bottom, right = pads
    if not any(pads):
        return x
    height, width = x.shape[first : first + 2]

    def value(*at: Expr) -> Expr:
        y, z = at[first] - top, at[first + 1] - left
        within = []
        if top or bottom:
            within.append(_inside(y, height))
        if left or right:
            within.append(_inside(z, width))
        zero = tirx.const(0, x.dtype)
        found = x[(*at[:first], y, z, *at[first + 2 :])]
        return tirx.if_then_else(tirx.all(*within), found, zero)

    sizes = (_simple(height + (top + bottom)), _simple(width + (left + right)))
    return te.compute((*x.shape[:first], *sizes, *x.shape[first + 2 :]), value, name="padded")


def _window_counts(
    extents: Sequence[Any], kernel: Sequence[Any], strides: Sequence[int], dilation: Sequence[int]
) -> list[Expr]:
    """How often the window fits into a padded tensor of that height and width."""
    return [
        _simple(spatial(extent, int(k), stride, 0, step))
        for extent, k, stride, step in zip(extents, kernel, strides, dilation, strict=True)
    ]


def _window_attrs(call: Any) -> tuple[list[int], list[int], list[int]]:
    names = ("strides", "padding", "dilation")
    strides, pads, dilation = (integers(call.attrs[name]) for name in names)
    return strides, pads, dilation


def _im2col(builder: Builder, call: Any) -> Any:
    """(N, H, W, C) -> (N, OH, OW, kh, kw, C) -> (N, OH, OW, kh*kw*C)."""
    kernel = integers(call.attrs["kernel"])
    strides, pads, dilation = _window_attrs(call)

    def windows(x: Any) -> Any:
        x = _padded(x, pads, first=1)
        n, *extents, channels = x.shape
        sizes = _window_counts(extents, kernel, strides, dilation)

        def value(i: Expr, oh: Expr, ow: Expr, ky: Expr, kx: Expr, c: Expr) -> Expr:
            y, z = oh * strides[0] + ky * dilation[0], ow * strides[1] + kx * dilation[1]
            return x[i, y, z, c]

        return te.compute((n, *sizes, *kernel, channels), value, name="im2col")

    columns = builder.call_te(windows, call.args[0], primfunc_name_hint="im2col")
    return relax.op.reshape(builder.emit(columns), call.ty.shape)


def _depthwise(builder: Builder, call: Any) -> Any:
    """NHWC x (kh, kw, C) [+ (C,)]: channels side by side in vectors, as they are in memory."""
    strides, pads, dilation = _window_attrs(call)

    def convolution(x: Any, w: Any, bias: Any = None) -> Any:
        x = _padded(x, pads, first=1)
        n, *extents, channels = x.shape
        *kernel, _ = w.shape
        sizes = _window_counts(extents, kernel, strides, dilation)
        ry, rx = (te.reduce_axis((0, k), r) for k, r in zip(kernel, ("ry", "rx"), strict=True))

        def product(i: Expr, oh: Expr, ow: Expr, c: Expr) -> Expr:
            y, z = oh * strides[0] + ry * dilation[0], ow * strides[1] + rx * dilation[1]
            return te.sum(x[i, y, z, c] * w[ry, rx, c], axis=[ry, rx])

        total = te.compute((n, *sizes, channels), product, name="depthwise")
        if bias is None:
            return total
        return te.compute(total.shape, lambda *at: total(*at) + bias[at[3]], name="biased")

    return builder.call_te(convolution, *call.args, primfunc_name_hint="depthwise")


def _convolution(
    x: Any,
    w: Any,
    bias: Any,
    strides: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Any:
    """NCHW x OIHW -> (N, groups, O/groups, OH, OW); NCHW where there is one group or as many as
    outputs.
    """
    x = _padded(x, pads)
    n = x.shape[0]
    outputs, depth, *kernel = w.shape
    sizes = _window_counts(x.shape[2:], kernel, strides, dilation)
    inner = outputs // groups
    rc = te.reduce_axis((0, depth), "rc")
    ry, rx = (te.reduce_axis((0, k), name) for k, name in zip(kernel, ("ry", "rx"), strict=True))

    def product(i: Expr, g: Expr, o: Expr, y: Expr, z: Expr) -> Expr:
        at = (y * strides[0] + ry * dilation[0], z * strides[1] + rx * dilation[1])
        value = x[(i, g * depth + rc, *at)] * w[g * inner + o, rc, ry, rx]
        return te.sum(value, axis=[rc, ry, rx])

    if groups == 1:
        y = te.compute((n, outputs, *sizes), lambda i, o, y, z: product(i, 0, o, y, z), name="conv")
    elif int(inner) == 1:
        y = te.compute((n, outputs, *sizes), lambda i, g, y, z: product(i, g, 0, y, z), name="conv")
    else:
        y = te.compute((n, groups, inner, *sizes), product, name="conv")
    if bias is None:
        return y
    if len(y.shape) == 5:
        return te.compute(y.shape, lambda i, g, o, a, b: y[i, g, o, a, b] + bias[g * inner + o])
    return te.compute(y.shape, lambda i, o, a, b: y[i, o, a, b] + bias[o], name="biased")


def _legalize_convolution(builder: Builder, call: Any, padding: Sequence[int]) -> Any:
    strides, dilation = integers(call.attrs["strides"]), integers(call.attrs["dilation"])
    groups = int(call.attrs["groups"])

    def convolution(x: Any, w: Any, bias: Any = None) -> Any:
        return _convolution(x, w, bias, strides, padding, dilation, groups)

    y = builder.call_te(convolution, *call.args, primfunc_name_hint="conv2d")
    y = builder.normalize(y)
    if len(y.ty.shape.values) == 4:
        return y
    return relax.op.reshape(builder.emit(y), call.ty.shape)


def _conv(builder: Builder, call: Any) -> Any:
    return _legalize_convolution(builder, call, integers(call.attrs["padding"]))


def _conv2d(builder: Builder, call: Any) -> Any:
    attrs = call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    if layouts != ("NCHW", "OIHW", "NCHW"):
        return default(call)(builder, call)
    return _legalize_convolution(builder, call, _four(integers(attrs.padding)))


def _conv2d_transpose(builder: Builder, call: Any) -> Any:
    """A matmul over the input channels, and each output the sum of the few products that fall on
    it.
    """
    attrs = call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    plain = layouts == ("NCHW", "IOHW", "NCHW") and int(attrs.groups) == 1
    if not plain or integers(attrs.dilation) != [1, 1]:
        return default(call)(builder, call)
    strides, pads = integers(attrs.strides), _four(integers(attrs.padding))
    extra = integers(attrs.output_padding)

    def products(x: Any, w: Any) -> Any:
        n, depth, height, width = x.shape
        rc = te.reduce_axis((0, depth), "rc")
        return te.compute(
            (n, *w.shape[1:], height, width),
            lambda i, o, ky, kx, y, z: te.sum(x[i, rc, y, z] * w[rc, o, ky, kx], axis=[rc]),
            name="products",
        )

    def gather(columns: Any) -> Any:
        n, outputs, kernel_height, kernel_width, height, width = columns.shape
        sizes = [
            _simple((extent - 1) * stride + (int(k) - before - after + more))
            for extent, stride, k, before, after, more in zip(
                (height, width), strides, columns.shape[2:4], pads[:2], pads[2:], extra, strict=True
            )
        ]

        def value(i: Expr, o: Expr, y: Expr, z: Expr) -> Expr:
            total: Expr = tirx.const(0, columns.dtype)
            (ys, from_y), (zs, from_z) = (
                (tirx.floormod(at + pad, stride), tirx.floordiv(at + pad, stride))
                for at, pad, stride in zip((y, z), pads[:2], strides, strict=True)
            )
            for a in range(-(-int(kernel_height) // strides[0])):
                for b in range(-(-int(kernel_width) // strides[1])):
                    ky, kx = ys + a * strides[0], zs + b * strides[1]
                    within = [_inside(from_y - a, height), _inside(from_z - b, width)]
                    within += [ky < kernel_height, kx < kernel_width]
                    term = columns[i, o, ky, kx, from_y - a, from_z - b]
                    zero = tirx.const(0, columns.dtype)
                    total = total + tirx.if_then_else(tirx.all(*within), term, zero)
            return total

        return te.compute((n, outputs, *sizes), value, name="conv2d_transpose")

    columns = builder.emit(builder.call_te(products, *call.args, primfunc_name_hint="products"))
    return builder.call_te(gather, columns, primfunc_name_hint="conv2d_transpose")


def _group_norm(builder: Builder, call: Any) -> Any:
    """With groups as an axis of their own: (N, G, C/G, ...) rows of one group each."""
    attrs, shape = call.attrs, call.ty.shape.values
    axes = sorted(int(axis) % len(shape) for axis in attrs.axes)
    if int(attrs.channel_axis) != 1 or axes != list(range(2, len(shape))):
        return default(call)(builder, call)
    groups, epsilon = int(attrs.num_groups), float(attrs.epsilon)
    per_group = int(shape[1]) // groups

    def normalized(x: Any, gamma: Any, beta: Any) -> Any:
        inner = list(range(2, len(x.shape)))
        count: Expr = tirx.const(1.0, "float32")
        for axis in inner:
            count = count * tirx.Cast("float32", x.shape[axis])
        mean = topi.sum(x, axis=inner) / count
        centred = te.compute(x.shape, lambda *at: x(*at) - mean(*at[:2]), name="centred")
        variance = topi.sum(centred * centred, axis=inner) / count

        def value(*at: Expr) -> Expr:
            channel = at[1] * per_group + at[2]
            scale = tirx.rsqrt(variance(*at[:2]) + tirx.const(epsilon, "float32"))
            return centred(*at) * scale * gamma[channel] + beta[channel]

        return te.compute(x.shape, value, name="group_norm")

    split = relax.op.reshape(call.args[0], [shape[0], groups, per_group, *shape[2:]])
    y = builder.call_te(normalized, builder.emit(split), *call.args[1:])
    return relax.op.reshape(builder.emit(y), call.ty.shape)


def _append(builder: Builder, call: Any) -> Any:
    """A piece of the state's memory under its new shape, its last rows written by a kernel."""
    state, rows, shape = call.args
    axes = integers(call.attrs["axes"])
    append = builder.add_func(append_kernel(rows.ty.shape.values, axes, rows.ty.dtype), "append")
    grown = builder.emit(relax.op.memory.view(state, shape))
    return relax.op.call_tir_inplace(append, [grown, rows], [0], call.ty)


KEPT = ("relax.reshape",)  # the virtual machine gives the same memory another shape


def _relu(builder: Builder, call: Any) -> Any:
    """max(x, 0) that keeps NaN, as the epilogue of a linear does."""

    def value(x: Any) -> Any:
        zero = tirx.const(0, x.dtype)
        return te.compute(x.shape, lambda *i: tirx.Select(x(*i) < zero, zero, x(*i)), name="relu")

    return builder.call_te(value, call.args[0], primfunc_name_hint="relu")


LEGALIZATIONS: dict[str, Legalization] = {
    "relax.nn.relu": _relu,
    "lbc.append": _append,
    "lbc.hadamard": legalize_hadamard,
    "lbc.im2col": _im2col,
    "lbc.conv": _conv,
    "lbc.depthwise": _depthwise,
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.nn.group_norm": _group_norm,
    "relax.argmax": legalize_axis.argument(is_max=True),
    "relax.argmin": legalize_axis.argument(is_max=False),
    "relax.cumsum": legalize_axis.accumulate(is_sum=True),
    "relax.cumprod": legalize_axis.accumulate(is_sum=False),
    "relax.sort": legalize_axis.sort,
    "relax.argsort": legalize_axis.argsort,
    "relax.topk": legalize_axis.topk,
    "relax.strided_slice": legalize_axis.strided_slice,
    "relax.expand_dims": _view,
    "relax.squeeze": _view,
    "relax.flatten": _view,
}
