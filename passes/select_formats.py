"""layer  ->  the format of its weight and of its activation, or the reason why it stays in float

Patterns are regular expressions searched in layer names. A pattern that matches no layer, or asks
for what a layer cannot have, is an error: what was asked is what runs."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from lbcompiler.errors import ConfigError, ModelError
from lbcompiler.formats import BlockFormat
from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.rewrite import calls

Supports = Callable[
    [BlockFormat, BlockFormat | None], str
]  # the reason of a refusal, "" if there is a kernel


@dataclass(frozen=True)
class SelectFormats:
    """One format for all chosen layers. `act_format` None is weight-only."""

    weight_format: BlockFormat
    act_format: BlockFormat | None
    weight_rule: str
    act_rule: str
    supports: Supports
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    on_unsupported: str = "error"
    quantizer: str = "rtn"  # by name, for the record
    requested: str = ""  # for the record as well: "auto" where the format is yet to be chosen
    name: ClassVar[str] = "select_formats"

    def __call__(self, model: Model) -> Model:
        for pattern in (*self.include, *self.exclude):
            _must_match(pattern, model.layers)
        linears = {str(call.attrs["layer"]) for call in calls(model.module) if call.op == ops.DENSE}
        empty = next((layer for layer in model.layers.values() if 0 in layer.shape), None)
        if empty is not None:
            raise ModelError(
                f"layer {empty.name!r} has a weight without elements {empty.shape}: mend the model"
            )
        chosen = {
            name: self._choose(layer, name in linears) for name, layer in model.layers.items()
        }
        return replace(model, layers=chosen)

    def _choose(self, layer: Layer, is_linear: bool) -> Layer:
        if layer.weight_format != "none" or (is_linear and layer.reason):
            return layer  # decided by the pass that made it
        excluded = next((p for p in self.exclude if re.search(p, layer.name)), None)
        if excluded is not None:
            return replace(layer, reason=f"excluded by {excluded!r}")
        included = next((p for p in self.include if re.search(p, layer.name)), None)
        if self.include and included is None:
            return replace(layer, reason="not included")
        if not is_linear:
            return self._refused(layer, layer.reason) if included else layer
        act, refusal = self.act_format, self.supports(self.weight_format, self.act_format)
        if (
            refusal
            and self.on_unsupported == "fallback"
            and not self.supports(self.weight_format, None)
        ):
            act = None
        elif refusal:
            return self._refused(layer, refusal)
        return replace(
            layer,
            requested=self.requested or self.weight_format.name,
            realized=self.weight_format.name,
            weight_format=self.weight_format.name,
            activation_format=act.name if act else "none",
            quantizer=self.quantizer,
            scale_rule=self.weight_rule,
            activation_scale_rule=self.act_rule if act else "none",
            reason=f"weights only: {refusal}" if refusal else "",
        )

    def _refused(self, layer: Layer, reason: str) -> Layer:
        if self.on_unsupported == "error":
            raise ConfigError(
                f"layer {layer.name!r} cannot have {self.weight_format.name}: {reason}. "
                f"Leave it out with --exclude '{re.escape(layer.name)}', or say "
                "--on-unsupported skip to keep such layers in float"
            )
        return replace(layer, requested=self.weight_format.name, reason=reason)


def _must_match(pattern: str, layers: dict[str, Layer]) -> None:
    if any(re.search(pattern, name) for name in layers):
        return
    near = difflib.get_close_matches(pattern, layers, n=3, cutoff=0.3) or list(layers)[:3]
    raise ConfigError(
        f"the pattern {pattern!r} matches no layer of the model; names look like "
        f"{', '.join(repr(n) for n in near)} (lbc compile --dry-run lists them all)"
    )
