"""dense(attention(q, k, dense(s, v, c)), w)  ->  dense(attention(q, k, dense(s, R^T v, c R)), w R)
dense(dense(s, v, c), w)                   ->  dense(dense(s, R^T v, c R), w R)

for every layer that has a `Rotation` R here: what an online rotation would make of its input, the
linear that computes the input makes already, because sums over keys are the same for all numbers of
a head. R's blocks lie within a head; heads that share their values are rotated alike. Nothing is
computed for it at run time, and in real arithmetic it is what `Rotate` does.

After QuaRot (arXiv 2404.00456, section 4, "the Hadamard heads") and SpinQuant's R2 (2405.16406)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from lbcompiler.errors import ConfigError
from lbcompiler.ir import ops
from lbcompiler.ir.constants import mapped
from lbcompiler.ir.model import Array, Model
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.ir.rotation import Rotation
from lbcompiler.ir.smoothing import Indices
from lbcompiler.passes.channels import Channels, NoSourceError, Source
from lbcompiler.passes.rotate import with_rotation


@dataclass(frozen=True)
class FoldRotations:
    """By the layer's name; all layers that read one input have one rotation."""

    rotations: Mapping[str, Rotation]
    name: ClassVar[str] = "fold_rotations"

    def __call__(self, model: Model) -> Model:
        channels = Channels(model.module)
        made = {
            producer.source.variable: (producer, rotation)
            for producer, rotation in _checked(channels, self.rotations)
        }
        weights, layers = dict(model.weights), dict(model.layers)

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.DENSE:
                return None
            layer, found = str(call.attrs["layer"]), made.get(scope.variable)
            rotation = self.rotations.get(layer)
            x, w, *bias = call.args
            if found is not None:
                producer, turn = found
                bias = [
                    mapped(b, turn.name, lambda c: producer.rotated(c, turn), scope, weights)
                    for b in bias
                ]
                w = mapped(w, turn.name, lambda v: producer.rotated(v, turn), scope, weights)
                layers[layer] = layers[layer].without_output("rotated for its reader")
            if rotation is not None:
                w = mapped(w, rotation.name, rotation.apply, scope, weights)
                layers[layer] = replace(
                    with_rotation(layers[layer], rotation), hadamard_folded=True
                )
            if found is None and rotation is None:
                return None
            return ops.dense(x, w, *bias, layer=layer)

        return replace(model, module=rewrite(model.module, visit), weights=weights, layers=layers)


@dataclass(frozen=True, eq=False)
class Producer:
    """The linear `layer`, by whose rows, or some of them, the input of `readers` is made."""

    layer: str
    readers: tuple[str, ...]
    source: Source

    def takes(self, rotation: Rotation) -> bool:
        """Whether that rotation of the readers' input can be one of its rows."""
        return self.source.mixes % rotation.size == 0

    def rotated(self, weight: Array, rotation: Rotation) -> Array:
        """R^T v of its weight v (N, K), or c R of its bias (N,): of the rows that are read."""
        rows: Indices = np.unique(self.source.rows)
        turned = np.array(weight, np.float32)
        turned[rows] = rotation.apply(turned[rows].T).T
        return turned


def producers(module: Any) -> dict[str, Producer | str]:
    """By layer: the linear that can make its input rotated, or why there is none."""
    return _producers(Channels(module))


def _producers(channels: Channels) -> dict[str, Producer | str]:
    found: dict[str, Producer | str] = {}
    for x, layers in channels.groups.items():
        try:
            source = channels.source(x)
            maker = channels.bound[source.variable]
            made: Producer | str = "no linear makes its input without a norm or an activation"
            if ops.is_call_to(maker, ops.DENSE) and source.mixes > 1:
                made = Producer(str(maker.attrs["layer"]), layers, source)
        except NoSourceError as refusal:
            made = str(refusal)
        found.update(dict.fromkeys(layers, made))
    return found


def _checked(
    channels: Channels, rotations: Mapping[str, Rotation]
) -> list[tuple[Producer, Rotation]]:
    """One of each input that is rotated. Raises ConfigError."""
    known, checked = _producers(channels), {}
    for layer, rotation in rotations.items():
        producer = known.get(layer, "it is no linear with a constant weight")
        if isinstance(producer, str):
            raise ConfigError(
                f"the rotation of layer {layer!r} cannot be folded away: {producer}; rotate its "
                "input on the way, or not at all"
            )
        if not producer.takes(rotation):
            raise ConfigError(
                f"the rotation of layer {layer!r} cannot be folded into {producer.layer!r}: its "
                f"blocks of {rotation.size} do not lie within {producer.source.mixes} channels of "
                "a head; choose a power of two that divides that"
            )
        if any(rotations.get(reader) != rotation for reader in producer.readers):
            raise ConfigError(
                f"layers {', '.join(map(repr, producer.readers))} read the same input: fold one "
                "rotation of all of them, or none"
            )
        checked[producer.layer] = producer, rotation
    return list(checked.values())
