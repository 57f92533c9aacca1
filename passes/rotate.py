"""dense(x, w[, b]; layer)          ->  dense(hadamard(x), w R[, b]; layer)
dense(im2col(x), w[, b]; layer)  ->  dense(im2col(hadamard(x)), w R[, b]; layer)   blocks in pixels
hadamard(hadamard(x))            ->  x                                             without signs

for every layer that has a `Rotation` R: (x R) (w R)^T = x w^T, and outliers of x and w are spread
over R's blocks before they are quantized. The weight is rotated when it is loaded; layers that read
the same x by the same rotation (q, k and v; gate and up) share one hadamard, which the target runs
with the quantization behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lbcompiler.errors import ConfigError
from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model, Weight
from lbcompiler.ir.rewrite import Scope, calls, rewrite
from lbcompiler.ir.rotation import Rotation, rotation_of


@dataclass(frozen=True)
class Rotate:
    """The rotation of each layer that has one, by the layer's name."""

    rotations: Mapping[str, Rotation]
    name: ClassVar[str] = "rotate"

    def __call__(self, model: Model) -> Model:
        self._check(model)
        weights, layers = dict(model.weights), dict(model.layers)
        rotated: dict[tuple[Any, Rotation], Any] = {}

        def visit(call: Any, scope: Scope) -> Any:
            layer = str(call.attrs["layer"]) if call.op == ops.DENSE else ""
            rotation = self.rotations.get(layer)
            if rotation is None:
                return None
            x, w, *bias = call.args
            if (x, rotation) not in rotated:
                rotated[x, rotation] = scope.emit(_rotated(x, rotation, scope))
            layers[layer] = with_rotation(layers[layer], rotation)
            held = _rotated_weight(w, rotation, weights, scope)
            return ops.dense(rotated[x, rotation], held, *bias, layer=layer)

        module = rewrite(model.module, visit)
        return replace(model, module=module, weights=weights, layers=layers)

    def _check(self, model: Model) -> None:
        dense = {str(c.attrs["layer"]): c for c in calls(model.module) if c.op == ops.DENSE}
        for layer, rotation in self.rotations.items():
            if layer not in dense:
                raise ConfigError(
                    f"layer {layer!r} cannot be rotated: it is no linear or ungrouped convolution "
                    "with a constant weight; those are " + ", ".join(map(repr, list(dense)[:3]))
                )
            k = int(dense[layer].args[0].ty.shape.values[-1])
            if not rotation.divides(k):
                raise ConfigError(
                    f"layer {layer!r} sums over {k} inputs, which are no whole blocks of a "
                    f"rotation of {rotation.size}: choose a power of two that divides {k}, or none"
                )


def with_rotation(layer: Layer, rotation: Rotation) -> Layer:
    return replace(layer, hadamard=rotation.size, hadamard_seed=rotation.seed)


def _rotated(x: Any, rotation: Rotation, scope: Scope) -> Any:
    earlier, windows = scope.call_to(x, ops.HADAMARD), scope.call_to(x, ops.IM2COL)
    if earlier is not None and rotation.seed is None and rotation_of(earlier.attrs) == rotation:
        return earlier.args[0]
    if windows is None or not rotation.divides(int(windows.args[0].ty.shape.values[-1])):
        return ops.hadamard(x, rotation)
    # a pixel is rotated once, not in each of its windows; the zeros around an image stay zeros
    pixels = scope.emit(ops.hadamard(windows.args[0], rotation))
    shape = {name: windows.attrs[name] for name in ("kernel", "strides", "padding", "dilation")}
    return ops.im2col(pixels, **shape)


def _rotated_weight(w: Any, rotation: Rotation, weights: dict[str, Weight], scope: Scope) -> Any:
    """w R: one for all layers that share w and the rotation."""
    source = str(scope.call_to(w, ops.WEIGHT).attrs["name"])
    name = f"{source}.{rotation.name}"
    if name not in weights:
        weights[name] = weights[source].map(weights[source].shape, rotation.apply)
    return scope.emit(ops.weight(name, weights[name].shape))
