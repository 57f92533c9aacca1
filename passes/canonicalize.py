"""conv(x, w[, b]; groups=1)  ->  permute_dims(dense(im2col(x), rows(w)[, b]))
add(dense(x, w), b)           ->  dense(x, w, b)          b constant, one number an output

After it every quantizable layer is one `lbc.dense` with its blocks along the last axis. A
convolution's reduction runs over (kh, kw, C) with the channel fastest, so that a block holds
neighbouring channels."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import Constant, is_constant
from lbcompiler.ir.model import Model, Weight, fresh
from lbcompiler.ir.rewrite import Scope, rewrite

ADD = tvm.ir.Op.get("relax.add")


@dataclass(frozen=True)
class Canonicalize:
    name: ClassVar[str] = "canonicalize"

    def __call__(self, model: Model) -> Model:
        weights = dict(model.weights)

        def visit(call: Any, scope: Scope) -> Any:
            if call.op == ops.CONV:
                return _conv_as_dense(call, scope, weights)
            if call.op == ADD:
                return _bias_into_dense(call, scope, weights)
            return None

        return replace(model, module=rewrite(model.module, visit), weights=weights)


def _conv_as_dense(call: Any, scope: Scope, weights: dict[str, Weight]) -> Any:
    held = scope.call_to(call.args[1], ops.WEIGHT)
    if held is None or int(call.attrs["groups"]) != 1:
        return None
    source = str(held.attrs["name"])
    out, channels, *kernel = weights[source].shape
    shape = (out, kernel[0] * kernel[1] * channels)
    name = fresh(weights, f"{source}.rows")
    weights[name] = weights[source].map(shape, lambda w: w.transpose(0, 2, 3, 1).reshape(shape))
    windows = {key: call.attrs[key] for key in ("strides", "padding", "dilation")}
    rows = scope.emit(ops.im2col(call.args[0], kernel=kernel, **windows))
    weight = scope.emit(ops.weight(name, shape))
    dense = ops.dense(rows, weight, layer=str(call.attrs["layer"]))
    for bias in call.args[2:]:
        vector = _vector(bias, scope, weights)
        dense = (
            relax.op.add(scope.emit(dense), bias)  # computed: no constant to fuse
            if vector is None
            else _with_bias(dense, vector)
        )
    dense = scope.emit(dense)
    return relax.op.permute_dims(dense, [0, 3, 1, 2])


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
