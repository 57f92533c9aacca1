"""batch_norm(conv(x, w[, b]), gain, shift, mean, variance)
                                    ->  conv(x, w * f, (b - mean) * f + shift)

with f = gain / sqrt(variance + epsilon), one factor an output channel.

Done before quantization, so that the weight that is quantized is the one that runs.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import constant_of
from lbcompiler.ir.model import Model, Weight, fresh
from lbcompiler.ir.rewrite import Scope, rewrite

BATCH_NORM = tvm.ir.Op.get("relax.nn.batch_norm")


@dataclass(frozen=True)
class FoldBatchNorm:
    name: ClassVar[str] = "fold_batch_norm"

    def __call__(self, model: Model) -> Model:
        weights = dict(model.weights)
        layers = dict(model.layers)

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != BATCH_NORM or int(call.attrs.axis) != 1:
                return None
            conv = scope.call_to(call.args[0], ops.CONV)
            if conv is None or not scope.is_used_once(call.args[0]):
                return None
            statistics = [constant_of(scope.value(a), weights) for a in call.args[1:5]]
            bias = constant_of(scope.value(conv.args[2]), weights) if len(conv.args) == 3 else 0.0
            if any(s is None for s in statistics) or bias is None:
                return None
            gain, shift, mean, variance = (np.asarray(s, np.float64) for s in statistics)
            factor = gain / np.sqrt(variance + float(call.attrs.epsilon))
            folded = _scaled(weights, scope.value(conv.args[1]), factor)
            if folded is None:
                return None
            new_bias = ((bias - mean) * factor + shift).astype(np.float32)
            layer = str(conv.attrs["layer"])
            layers[layer] = replace(
                layers[layer], output=layers[layer].normalized, output_has_bias=True
            )
            attrs = {key: conv.attrs[key] for key in ("strides", "padding", "dilation", "groups")}
            out = scope.emit(
                ops.conv(conv.args[0], folded, relax.const(new_bias), layer=layer, **attrs)
            )
            return relax.Tuple([out, call.args[3], call.args[4]])

        return replace(model, module=rewrite(model.module, visit), weights=weights, layers=layers)


def _scaled(weights: dict[str, Weight], expr: Any, factor: np.ndarray[Any, Any]) -> Any:
    """The weight times one factor an output channel, or None where it is no weight."""
    if not ops.is_call_to(expr, ops.WEIGHT):
        return None
    source = str(expr.attrs["name"])
    name = fresh(weights, f"{source}.folded")
    held = weights[source]
    weights[name] = held.map(
        held.shape, lambda w: (w * factor.reshape(-1, 1, 1, 1)).astype(np.float32)
    )
    return ops.weight(name, held.shape)
