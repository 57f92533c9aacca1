"""layer  ->  the formats, rules, quantizer and rotation that were decided for it, or float, and why

Behind `select_formats`, which says what was asked: a layer keeps its request beside what it became.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.ops import FLOAT
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes.rotate import Rotate


@dataclass(frozen=True)
class Decision:
    """Of one layer; the format of `ops.FLOAT` leaves it in float."""

    weight_format: str
    act_format: str
    rule: str
    act_rule: str
    quantizer: str
    rotation: Rotation | None
    reason: str
    weight_scaled: bool = False


@dataclass(frozen=True)
class ApplyDecisions:
    """By the layer's name; a layer without one is as it was."""

    decisions: Mapping[str, Decision]
    name: ClassVar[str] = "apply_decisions"

    def __call__(self, model: Model) -> Model:
        layers = {name: self._decided(layer) for name, layer in model.layers.items()}
        rotations = {
            name: decision.rotation
            for name, decision in self.decisions.items()
            if decision.rotation is not None
        }
        return Rotate(rotations)(replace(model, layers=layers))

    def _decided(self, layer: Layer) -> Layer:
        decision = self.decisions.get(layer.name)
        if decision is None:
            return layer
        if decision.weight_format == FLOAT:
            return replace(
                layer,
                realized=FLOAT,
                weight_format="none",
                activation_format="none",
                quantizer="none",
                scale_rule="none",
                activation_scale_rule="none",
                reason=decision.reason,
            )
        return replace(
            layer,
            realized=decision.weight_format,
            weight_format=decision.weight_format,
            weight_scaled=decision.weight_scaled,
            activation_format=decision.act_format,
            scale_rule=decision.rule,
            activation_scale_rule=decision.act_rule,
            quantizer=decision.quantizer,
            reason=decision.reason,
        )
