"""conv(x, w[, b]; groups=1)  ->  nchw(dense(im2col(nhwc(x)), rows(w)[, b]))
conv(x, w[, b]; groups=C)  ->  nchw(depthwise(nhwc(x), w'[, b]))   one output a channel
add(dense(x, w), b)        ->  dense(x, w, b)               b constant, one number an output

After it every quantizable layer is one `lbc.dense` with its blocks along the last axis. A
convolution's reduction runs over (kh, kw, C) with the channel fastest, so that a block holds
neighbouring channels. `nhwc` and `nchw` are permute_dims, most of which `channels_last` cancels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import Constant, is_constant
from lbcompiler.ir.model import Model, Weight, fresh
from lbcompiler.ir.permute import TO_NCHW, TO_NHWC
from lbcompiler.ir.rewrite import Scope, rewrite

ADD = tvm.ir.Op.get("relax.add")


@dataclass(frozen=True)
class Canonicalize:
    name: ClassVar[str] = "canonicalize"

    def __call__(self, model: Model) -> Model:
        weights = dict(model.weights)

        def visit(call: Any, scope: Scope) -> Any:
            if call.op == ops.CONV:
                return _conv_of_pixels(call, scope, weights)
            if call.op == ADD:
                return _bias_into_dense(call, scope, weights)
            return None

        return replace(model, module=rewrite(model.module, visit), weights=weights)


def _conv_of_pixels(call: Any, scope: Scope, weights: dict[str, Weight]) -> Any:
    held = scope.call_to(call.args[1], ops.WEIGHT)
    if held is None:
        return None
    source, groups = str(held.attrs["name"]), int(call.attrs["groups"])
    out, channels, *kernel = weights[source].shape
    if groups != 1 and not (channels == 1 and out == groups):
        return None
    layer = str(call.attrs["layer"])
    windows = {key: call.attrs[key] for key in ("strides", "padding", "dilation")}
    x = scope.emit(relax.op.permute_dims(call.args[0], TO_NHWC))
    if groups != 1:
        shape = (*kernel, out)
        weight = _moved(weights, source, "channels_last", shape, (2, 3, 0, 1), scope)
        y = _biased(
            lambda bias: ops.depthwise(x, weight, bias, layer=layer, **windows),
            call.args[2:],
            scope,
            weights,
        )
        return relax.op.permute_dims(y, TO_NCHW)
    shape = (out, kernel[0] * kernel[1] * channels)
    rows = scope.emit(ops.im2col(x, kernel=kernel, **windows))
    weight = _moved(weights, source, "rows", shape, (0, 2, 3, 1), scope)
    y = _biased(
        lambda bias: ops.dense(rows, weight, bias, layer=layer), call.args[2:], scope, weights
    )
    return relax.op.permute_dims(y, TO_NCHW)


def _moved(
    weights: dict[str, Weight],
    source: str,
    kind: str,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    scope: Scope,
) -> Any:
    """The weight with its axes in another order, as one of `shape`."""
    name = fresh(weights, f"{source}.{kind}")
    weights[name] = weights[source].map(
        shape, lambda w: np.ascontiguousarray(w.transpose(axes)).reshape(shape)
    )
    return scope.emit(ops.weight(name, shape))


def _biased(
    layer: Callable[[Any], Any], bias: Sequence[Any], scope: Scope, weights: dict[str, Weight]
) -> Any:
    """The layer with its bias, added behind it where it is no constant to fuse."""
    if not bias:
        return scope.emit(layer(None))
    vector = _vector(bias[0], scope, weights)
    if vector is not None:
        return scope.emit(layer(vector))
    return scope.emit(relax.op.add(scope.emit(layer(None)), bias[0]))


def _bias_into_dense(call: Any, scope: Scope, weights: dict[str, Weight]) -> Any:
    for x, bias in (call.args, reversed(call.args)):
        dense = scope.call_to(x, ops.DENSE)
        if dense is None or len(dense.args) == 3 or not scope.is_used_once(x):
            continue
        vector = _vector(bias, scope, weights)
        if vector is None or vector.ty.shape.values[0] != dense.ty.shape.values[-1]:
            continue
        return _with_bias(dense, vector)
    return None


def _with_bias(dense: Any, bias: Any) -> Any:
    x, w = dense.args
    return ops.dense(x, w, bias, layer=str(dense.attrs["layer"]))


def _vector(expr: Any, scope: Scope, weights: dict[str, Weight]) -> Any:
    """A constant (1, .., 1, N) as (N,), None for anything else."""
    value = scope.value(expr)
    if not is_constant(value):
        return None
    *ones, n = [int(d) for d in value.ty.shape.values] or [1]
    if any(d != 1 for d in ones) or str(value.ty.dtype) != "float32":
        return None
    if isinstance(value, Constant):
        return scope.emit(relax.const(np.asarray(value.value.numpy()).reshape(n)))
    if not ones:
        return expr
    source = str(value.attrs["name"])
    name = fresh(weights, f"{source}.vector")
    weights[name] = weights[source].map((n,), lambda b: b.reshape(n))
    return scope.emit(ops.weight(name, (n,)))
