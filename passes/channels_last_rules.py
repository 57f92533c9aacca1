"""How an op that walks over pixels is said of channels-last tensors, by the op's name.

A rule returns the same value as a permutation of an op over channels-last tensors, or None where no
operand is one, or the op does something else with its axes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax, tirx

from lbcompiler.ir.permute import (
    PERMUTE,
    RESHAPE,
    TO_NCHW,
    TO_NHWC,
    axes_of,
    has_shape,
    permuted,
)
from lbcompiler.ir.rewrite import Scope

BROADCAST = tvm.ir.Op.get("relax.broadcast_to")


@dataclass(frozen=True)
class Pixels:
    """Tensors as rows of pixels, in one scope."""

    scope: Scope

    def last(self, x: Any) -> Any:
        """y of x = nchw(y), None for anything else."""
        permute = self.scope.call_to(x, PERMUTE)
        if permute is not None and axes_of(permute) == TO_NCHW:
            return permute.args[0]
        source = self.scope.call_to(x, RESHAPE)
        if source is None:
            return None
        y = source.args[0]  # (N, 1, 1, C) -> (N, C, 1, 1), which is a permutation too
        return y if _is_view(y, x) else None

    def like(self, x: Any) -> Any:
        """Any operand of an elementwise op, channels last; None where it has no such order."""
        if not isinstance(x, relax.Expr) or not isinstance(x.ty, relax.TensorType):
            return x  # a number
        shape = x.ty.shape.values
        if all(_is_one(extent) for extent in shape):
            return x if len(shape) <= 4 else None
        if len(shape) == 3 and all(_is_one(extent) for extent in shape[1:]):
            return self.scope.emit(relax.op.reshape(x, [1, 1, shape[0]]))
        if len(shape) != 4:
            return None
        y = self.last(x)
        return self.scope.emit(permuted(x, TO_NHWC, self.scope)) if y is None else y

    def first(self, y: Any) -> Any:
        """nchw(y)."""
        return permuted(self.scope.emit(y), TO_NCHW, self.scope)

    def cast(self, x: Any, ty: Any) -> Any:
        """match_cast(nchw(y))  ->  nchw(match_cast(y))"""
        y = self.last(x)
        if y is None or ty.shape is None:
            return None
        extents = [ty.shape.values[axis] for axis in TO_NHWC]
        return self.first(self.scope.cast(y, relax.TensorType(extents, ty.dtype)))


Rule = Callable[[Any, Pixels], Any]


def _elementwise(call: Any, pixels: Pixels) -> Any:
    if len(call.ty.shape.values) != 4 or all(pixels.last(arg) is None for arg in call.args):
        return None
    args = [pixels.like(arg) for arg in call.args]
    if any(arg is None for arg in args):
        return None
    return pixels.first(relax.Call(call.op, args, call.attrs, call.ty_args))


def _reduction(make: Callable[..., Any]) -> Rule:
    """Along any axes where they are kept, along height and width where not."""

    def rule(call: Any, pixels: Pixels) -> Any:
        y = pixels.last(call.args[0])
        if y is None or call.attrs.axis is None:
            return None
        axes = sorted(int(axis) % 4 for axis in call.attrs.axis)
        if bool(call.attrs.keepdims):
            return pixels.first(make(y, sorted(TO_NCHW[axis] for axis in axes), keepdims=True))
        return make(y, [1, 2], keepdims=False) if axes == [2, 3] else None

    return rule


def _pool(make: Callable[..., Any]) -> Rule:
    def rule(call: Any, pixels: Pixels) -> Any:
        y, attrs = pixels.last(call.args[0]), call.attrs
        if y is None or (str(attrs.layout), str(attrs.out_layout)) != ("NCHW", "NCHW"):
            return None
        sizes = ([int(v) for v in values] for values in (attrs.pool_size, attrs.strides))
        return pixels.first(
            make(
                y,
                *sizes,
                [int(v) for v in attrs.padding],
                [int(v) for v in attrs.dilation],
                bool(attrs.ceil_mode),
                bool(attrs.count_include_pad),
                layout="NHWC",
            )
        )

    return rule


def _concat(call: Any, pixels: Pixels) -> Any:
    fields = getattr(pixels.scope.value(call.args[0]), "fields", ())
    if not fields or all(pixels.last(field) is None for field in fields):
        return None
    if call.attrs.axis is None or len(call.ty.shape.values) != 4:
        return None
    parts = [pixels.last(field) for field in fields]
    parts = [
        pixels.scope.emit(permuted(field, TO_NHWC, pixels.scope)) if part is None else part
        for field, part in zip(fields, parts, strict=True)
    ]
    return pixels.first(relax.op.concat(parts, TO_NCHW[int(call.attrs.axis) % 4]))


def _repetition(call: Any, pixels: Pixels) -> Any:
    """reshape(broadcast_to(reshape(x))) that writes each row or each column several times."""
    wide = pixels.scope.call_to(call.args[0], BROADCAST)
    thin = None if wide is None else pixels.scope.call_to(wide.args[0], RESHAPE)
    y = None if thin is None else pixels.last(thin.args[0])
    if wide is None or thin is None or y is None:
        return None
    shape, times = thin.args[0].ty.shape.values, wide.ty.shape.values
    for axis in (2, 3):
        inserted = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
        repeated = [*shape[:axis], shape[axis] * times[axis + 1], *shape[axis + 1 :]]
        if len(times) != 5 or not has_shape(thin, inserted):
            continue
        count = times[axis + 1]
        if not has_shape(wide, [*inserted[: axis + 1], count, *inserted[axis + 2 :]]):
            continue
        if not has_shape(call, repeated):
            continue
        at, extents = axis - 1, list(y.ty.shape.values)
        thin_y = [*extents[: at + 1], 1, *extents[at + 1 :]]
        wide_y = [*extents[: at + 1], count, *extents[at + 1 :]]
        out = [call.ty.shape.values[a] for a in TO_NHWC]
        y = pixels.scope.emit(relax.op.reshape(y, thin_y))
        y = pixels.scope.emit(relax.op.broadcast_to(y, wide_y))
        return pixels.first(relax.op.reshape(y, out))
    return None


def _transposed(call: Any, pixels: Pixels) -> Any:
    """A transposed convolution whose outputs do not overlap: each pixel makes a kernel of pixels.

    conv2d_transpose(nchw(y), w; strides = kernel)  ->  nchw(place(matmul(y, w')))
    """
    y, w, attrs = pixels.last(call.args[0]), call.args[1], call.attrs
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
    if y is None or layouts != ("NCHW", "IOHW", "NCHW") or int(attrs.groups) != 1:
        return None
    depth, outputs, *kernel = (int(extent) for extent in w.ty.shape.values)
    around = [*attrs.padding, *attrs.output_padding]
    steps = [int(step) for step in attrs.strides]
    if steps != kernel or any(map(int, around)) or any(int(d) != 1 for d in attrs.dilation):
        return None
    emit = pixels.scope.emit
    columns = emit(relax.op.permute_dims(w, [0, 2, 3, 1]))
    columns = emit(relax.op.reshape(columns, [depth, kernel[0] * kernel[1] * outputs]))
    n, height, width, _ = y.ty.shape.values
    z = emit(relax.op.matmul(y, columns))
    z = emit(relax.op.reshape(z, [n, height, width, *kernel, outputs]))
    z = emit(relax.op.permute_dims(z, [0, 1, 3, 2, 4, 5]))
    return pixels.first(relax.op.reshape(z, [call.ty.shape.values[a] for a in TO_NHWC]))


def _batch_norm(call: Any, pixels: Pixels) -> Any:
    y, attrs = pixels.last(call.args[0]), call.attrs
    if y is None or int(attrs.axis) != 1:
        return None
    normal = relax.op.nn.batch_norm(
        y,
        *call.args[1:],
        axis=3,
        epsilon=float(attrs.epsilon),
        center=bool(attrs.center),
        scale=bool(attrs.scale),
        momentum=float(attrs.momentum),
        training=bool(attrs.training),
    )
    found = relax.TupleGetItem(pixels.scope.emit(normal), 0)
    return relax.Tuple([pixels.scope.emit(pixels.first(found)), *call.args[3:5]])


def _windows(call: Any, pixels: Pixels) -> Any:
    """Windows of one pixel that leave none out are the pixels."""
    ones = [*call.attrs["kernel"], *call.attrs["strides"]]
    is_all = all(int(v) == 1 for v in ones) and not any(int(v) for v in call.attrs["padding"])
    return call.args[0] if is_all else None


def _is_one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == 1


def _is_view(y: Any, x: Any) -> bool:
    """Whether x is nchw(y), of one pixel."""
    before, after = y.ty.shape.values, x.ty.shape.values
    if len(before) != 4 or len(after) != 4:
        return False
    pixels = [*before[1:3], *after[2:]]
    return all(map(_is_one, pixels)) and has_shape(x, [before[0], before[3], 1, 1])


UNARY = (
    "abs ceil clip cos erf exp floor log negative round rsqrt sigmoid sign sin sqrt square tanh "
    "astype nn.relu nn.gelu nn.gelu_tanh nn.silu nn.leakyrelu"
)
BINARY = "add subtract multiply divide maximum minimum power"
OP = relax.op
RULES: dict[str, Rule] = {
    **{f"relax.{name}": _elementwise for name in f"{UNARY} {BINARY}".split()},
    "lbc.hardswish": _elementwise,
    **{f"relax.{name}": _reduction(getattr(OP, name)) for name in ("mean", "sum", "max", "min")},
    "relax.nn.avg_pool2d": _pool(OP.nn.avg_pool2d),
    "relax.nn.max_pool2d": _pool(OP.nn.max_pool2d),
    "relax.concat": _concat,
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.conv2d_transpose": _transposed,
    "relax.reshape": _repetition,
    "lbc.im2col": _windows,
}
