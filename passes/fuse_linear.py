"""dense(dequantize(x..), dequantize(w..)[, b])  ->  linear(x.., w..[, b])
dense(x, dequantize(w..)[, b])                ->  linear(x, w..[, b])          weights only
dense(x, w[, b])                              ->  linear(x, w[, b])            in float
f(linear(..))                                 ->  linear(..; epilogue=f)       f: relu, gelu, ..
f(permute_dims(linear(..)))                   ->  permute_dims(linear(..; epilogue=f))
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from lbcompiler.formats import format_named, stored_format
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, rewrite

PERMUTE = tvm.ir.Op.get("relax.permute_dims")
EPILOGUE_OF = {
    "relax.nn.relu": "relu",
    "relax.nn.gelu": "gelu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.nn.silu": "silu",
    "relax.sigmoid": "sigmoid",
    "relax.tanh": "tanh",
    "lbc.hardswish": "hardswish",
}


@dataclass(frozen=True)
class FuseLinear:
    name: ClassVar[str] = "fuse_linear"

    def __call__(self, model: Model) -> Model:
        layers = dict(model.layers)

        def fuse(call: Any, scope: Scope) -> Any:
            return _linear(call, scope) if call.op == ops.DENSE else None

        def fuse_epilogue(call: Any, scope: Scope) -> Any:
            epilogue = EPILOGUE_OF.get(getattr(call.op, "name", ""))
            if epilogue is None or not scope.is_used_once(call.args[0]):
                return None
            inner, axes = call.args[0], None
            permute = scope.call_to(inner, PERMUTE)
            if permute is not None:
                inner, axes = permute.args[0], permute.attrs.axes
            linear = scope.call_to(inner, ops.LINEAR)
            if (
                linear is None
                or not scope.is_used_once(inner)
                or linear.attrs["epilogue"] != "none"
            ):
                return None
            name = str(linear.attrs["layer"])
            layers[name] = replace(layers[name], epilogue=epilogue)
            fused = with_epilogue(linear, epilogue)
            if permute is None:
                return fused
            return relax.op.permute_dims(scope.emit(fused), axes)

        module = rewrite(rewrite(model.module, fuse), fuse_epilogue)
        return replace(model, module=module, layers=layers)


def _linear(dense: Any, scope: Scope) -> Any:
    x, w, *bias = dense.args
    w_call, x_call = scope.call_to(w, ops.DEQUANTIZE), scope.call_to(x, ops.DEQUANTIZE)
    quantized = w_call is not None
    return ops.linear(
        list(x_call.args) if quantized and x_call is not None else [x],
        list(w_call.args) if quantized else [w],
        *bias,
        layer=str(dense.attrs["layer"]),
        n=int(dense.ty.shape.values[-1]),
        weight_format=stored_format(str(w_call.attrs["format"])) if quantized else None,
        act_format=format_named(str(x_call.attrs["format"]))
        if quantized and x_call is not None
        else None,
    )


def with_epilogue(linear: Any, epilogue: str) -> Any:
    """The same `lbc.linear` that applies `epilogue` to what it writes."""
    weight_format, act_format = ops.linear_formats(linear)
    return ops.linear(
        *ops.linear_operands(linear),
        layer=str(linear.attrs["layer"]),
        n=int(linear.attrs["n"]),
        weight_format=weight_format,
        act_format=act_format,
        epilogue=epilogue,
    )
