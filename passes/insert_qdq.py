"""dense(x, ..)  ->  dense(dequantize(quantize(x)), ..)

for every layer with an activation format, quantized on the fly in blocks along the last axis.
Layers that read the same x in the same way (q, k and v; gate and up) share one quantize."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tvm import relax

from lbcompiler.formats import format_named
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, rewrite


@dataclass(frozen=True)
class InsertQDQ:
    name: ClassVar[str] = "insert_qdq"

    def __call__(self, model: Model) -> Model:
        done: dict[tuple[Any, str, str], Any] = {}

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.DENSE:
                return None
            layer, x = model.layers[str(call.attrs["layer"])], call.args[0]
            if layer.activation_format == "none":
                return None
            fmt, rule = format_named(layer.activation_format), layer.activation_scale_rule
            key = (x, fmt.name, rule)
            if key not in done:
                quantized = scope.emit(ops.quantize(x, fmt=fmt, scale_rule=rule))
                parts = [scope.emit(relax.TupleGetItem(quantized, i)) for i in range(fmt.parts)]
                done[key] = scope.emit(ops.dequantize(parts, fmt=fmt))
            return ops.dense(done[key], *call.args[1:], layer=layer.name)

        return replace(model, module=rewrite(model.module, visit))
