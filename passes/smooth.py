"""dense(norm(x, g, o), w, b)   ->  dense(norm(x, g / s, (o - z) / s), w s, b + w z)
dense(dense(x, v, c), w, b)  ->  dense(dense(x, v / s, (c - z) / s), w s, b + w z)

for every layer that has a `Smoothing` (scale s, shift z): the same in real arithmetic, and what
lies between is better to quantize in blocks. There may stand what `channels` looks through; an RMS
norm has no offset o, so that it takes a scale only. All linears that read the same are smoothed as
one. Weights are changed when they are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.formats.elements import Floats
from lbcompiler.ir import ops
from lbcompiler.ir.constants import Constant, mapped
from lbcompiler.ir.model import Layer, Model, Weight, fresh
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.ir.smoothing import Folding, Smoothing
from lbcompiler.passes.channels import RMS_NORM, Channels, NoSourceError, Source


def can_fold(module: Any) -> dict[str, Folding]:
    """By layer: what a smoothing of its input may be, or why there can be none."""
    return Channels(module).foldings()


@dataclass(frozen=True)
class Smooth:
    """The smoothing of each layer that has one, by the layer's name."""

    smoothings: Mapping[str, Smoothing]
    name: ClassVar[str] = "smooth"

    def __call__(self, model: Model) -> Model:
        made = self._made(Channels(model.module))
        weights, layers = dict(model.weights), dict(model.layers)

        def visit(call: Any, scope: Scope) -> Any:
            layer = str(call.attrs["layer"]) if call.op == ops.DENSE else ""
            out, read = made.get(scope.variable), self.smoothings.get(layer)
            if out is not None and not layer:
                return _changed_norm(call, out, scope, weights)
            if out is None and read is None:
                return None
            layers[layer] = _record(layers[layer], read, is_changed=out is not None)
            return _changed_dense(call, read, out, scope, weights)

        module = rewrite(model.module, visit)
        return replace(model, module=module, weights=weights, layers=layers)

    def _made(self, channels: Channels) -> dict[Any, Smoothing]:
        """What goes into the constants of each norm or dense, by its variable."""
        made: dict[Any, Smoothing] = {}
        missing = set(self.smoothings)
        for x, layers in channels.groups.items():
            given = [self.smoothings[layer] for layer in layers if layer in self.smoothings]
            missing.difference_update(layers)
            if not given:
                continue
            if len(given) < len(layers) or not all(s.equals(given[0]) for s in given):
                raise ConfigError(
                    f"layers {', '.join(map(repr, layers))} read the same input: give all of them "
                    "one smoothing, or none"
                )
            try:
                source = channels.source(x)
            except NoSourceError as refusal:
                raise ConfigError(f"layer {layers[0]!r} cannot be smoothed: {refusal}") from None
            _check(layers[0], given[0], source)
            count = _constants(channels.bound[source.variable])
            made[source.variable] = _placed(given[0], source, count)
        if missing:
            raise ConfigError(
                f"layer {sorted(missing)[0]!r} cannot be smoothed: it is no linear or ungrouped "
                "convolution with a constant weight"
            )
        return made


def _check(layer: str, smoothing: Smoothing, source: Source) -> None:
    scale, shift = smoothing.scale, smoothing.shift
    if scale.shape != source.rows.shape:
        raise ConfigError(
            f"layer {layer!r} reads {len(source.rows)} channels, and its smoothing has "
            f"{scale.shape} scales"
        )
    if shift is not None and shift.any() and not source.shifts:
        raise ConfigError(
            f"layer {layer!r} can have no shift: what computes its input has no offset that would "
            "reach it. Give its smoothing a scale only"
        )
    for values in (scale, shift):
        spread = np.zeros(source.rows.max() + 1, np.float32)
        if values is not None:
            spread[source.rows] = values
            if not np.array_equal(spread[source.rows], values):
                raise ConfigError(
                    f"layer {layer!r} reads one value in several channels, which must have the "
                    "same scale and shift: see `can_fold(module)[layer].rows`"
                )


def _placed(smoothing: Smoothing, source: Source, count: int) -> Smoothing:
    """(count,) scales and shifts of the constants: those of the channels that they make."""
    scale, shift = np.ones(count, np.float32), np.zeros(count, np.float32)
    scale[source.rows] = smoothing.scale
    if smoothing.shift is not None:
        shift[source.rows] = smoothing.shift
    return Smoothing(scale, shift if shift.any() else None)


def _constants(call: Any) -> int:
    return int(call.args[1].ty.shape.values[0])


def _record(layer: Layer, read: Smoothing | None, *, is_changed: bool) -> Layer:
    """What it computes is no value of the source any more where its rows or its bias changed."""
    if read is not None:
        layer = replace(layer, smoothing=read.method)
    if is_changed:
        return layer.without_output("scaled for its reader")
    if read is not None and read.shift is not None and not layer.output_has_bias:
        return layer.without_output("its input is shifted")
    return layer


def _changed_norm(call: Any, out: Smoothing, scope: Scope, weights: dict[str, Weight]) -> Any:
    x, gain, *offset = call.args
    gain = mapped(gain, "smoothed", lambda g: g / out.scale, scope, weights)
    if call.op == RMS_NORM:
        return relax.op.nn.rms_norm(x, gain, call.attrs.axes, call.attrs.epsilon)
    moved = mapped(offset[0], "smoothed", out.activation, scope, weights)
    return relax.op.nn.layer_norm(x, gain, moved, call.attrs.axes, call.attrs.epsilon)


def _changed_dense(
    call: Any,
    read: Smoothing | None,
    out: Smoothing | None,
    scope: Scope,
    weights: dict[str, Weight],
) -> Any:
    """W -> W s / s_out, b -> (b + W z - z_out) / s_out."""
    x, w, *bias = call.args
    source = str(scope.call_to(w, ops.WEIGHT).attrs["name"])
    layer, held = str(call.attrs["layer"]), weights[source]

    def smoothed(weight: Floats) -> Floats:
        if read is not None:
            weight = read.weight(weight)
        return weight if out is None else weight / out.scale[:, None]

    name = fresh(weights, f"{source}.smoothed")
    weights[name] = held.map(held.shape, smoothed)
    changed = scope.emit(ops.weight(name, held.shape))
    return ops.dense(x, changed, _changed_bias(bias, held, read, out, scope, weights), layer=layer)


def _changed_bias(
    bias: list[Any],
    held: Weight,
    read: Smoothing | None,
    out: Smoothing | None,
    scope: Scope,
    weights: dict[str, Weight],
) -> Any:
    shifts = [s is not None and s.shift is not None for s in (read, out)]
    if not bias and not any(shifts):
        return None
    if bias and not shifts[0]:
        return (
            bias[0] if out is None else mapped(bias[0], "smoothed", out.activation, scope, weights)
        )
    before = _known(bias[0], scope, weights) if bias else None

    def moved() -> Floats:
        total = np.zeros(held.shape[0], np.float32)
        if before is not None:
            total = total + before.load()
        if read is not None:
            total = total + read.bias(held.load())
        return total if out is None else out.activation(total)

    name = fresh(weights, "smoothed.bias")
    weights[name] = Weight(held.shape[:1], "float32", moved)
    return scope.emit(ops.weight(name, held.shape[:1]))


def _known(expr: Any, scope: Scope, weights: dict[str, Weight]) -> Weight:
    value = scope.value(expr)
    if isinstance(value, Constant):
        return Weight.of(value.value.numpy())
    return weights[str(value.attrs["name"])]
