"""dense(x, w, ..)  ->  dense(x, dequantize(codes(w), scales(w)[, tensor_scale(w)]), ..)

for every layer that has a weight format. The codes are computed when they are loaded, all parts of
a weight at once; a layer's float weight is in memory only for that moment. Where they are `known`,
because the layer's format was decided by measuring them, they are read instead."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from lbcompiler.errors import ModelError
from lbcompiler.formats import BlockFormat, Quantized, format_named
from lbcompiler.ir import ops
from lbcompiler.ir.model import Array, Layer, Model, Weight, shared
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.quantizers import Problem, Quantizer, round_to_nearest


@dataclass(frozen=True)
class QuantizeWeights:
    """known: layer -> its codes."""

    quantizer: Quantizer = round_to_nearest
    known: Mapping[str, Callable[[], Quantized]] = field(default_factory=dict)
    name: ClassVar[str] = "quantize_weights"

    def __call__(self, model: Model) -> Model:
        weights = dict(model.weights)

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.DENSE:
                return None
            layer = model.layers[str(call.attrs["layer"])]
            held = scope.call_to(call.args[1], ops.WEIGHT)
            if layer.weight_format == "none" or held is None:
                return None
            fmt, source = format_named(layer.weight_format), str(held.attrs["name"])
            fmt = fmt.scaled if layer.weight_scaled else fmt
            stem = f"{source}.{fmt.name}.{layer.scale_rule}"
            if layer.name in self.known:
                stem = f"{stem}.{layer.name}"
            names = [f"{stem}.{part}" for part in ("codes", "scales", "tensor_scale")[: fmt.parts]]
            if names[0] not in weights:
                parts = self._parts(weights[source], fmt, layer)
                weights.update(zip(names, parts, strict=True))
            parts_of = [ops.weight(n, weights[n].shape, weights[n].dtype) for n in names]
            w = scope.emit(ops.dequantize([scope.emit(p) for p in parts_of], fmt=fmt))
            return ops.dense(call.args[0], w, *call.args[2:], layer=layer.name)

        return replace(model, module=rewrite(model.module, visit), weights=weights)

    def _parts(self, weight: Weight, fmt: BlockFormat, layer: Layer) -> list[Weight]:
        n, k = weight.shape
        specs = [((n, k), "uint8"), ((n, fmt.blocks(k)), "uint8"), ((), "float32")][: fmt.parts]

        def compute() -> tuple[Array, ...]:
            known = self.known.get(layer.name)
            q = self._quantized(weight.load(), fmt, layer) if known is None else known()
            parts = (q.codes, q.scales, q.tensor_scale)
            return tuple(part for part in parts if part is not None)

        return shared(specs, compute)

    def _quantized(self, values: Array, fmt: BlockFormat, layer: Layer) -> Quantized:
        if not np.isfinite(values).all():
            raise ModelError(
                f"the weight of layer {layer.name!r} holds NaN or infinity, which no block can "
                "represent: mend the model, or keep the layer in float with --exclude"
            )
        return self.quantizer(Problem(values, fmt, layer.scale_rule))
