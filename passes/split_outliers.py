"""dense(x, w, b; l)  ->  add(dense(x, rest(w), b; l), dense(x[.., i:j], outliers(w); l.outliers))

for every layer that has a `Split`: the blocks of x that hold its outliers are multiplied in a wider
format, and meet zeros in the first product (`ir.outliers`). What is cut out of x are slices at
block boundaries. Where the linears that compute x can have their rows reordered,

    dense(f(dense(s, v, c)), w)  ->  dense(f(dense(s, v[p], c[p])), w[:, p])

with f activations, sums and products of channels, the outliers stand together at the end of x; a
norm's or an attention's channels have their order from the residual stream or from the heads, which
others read as well, and stay where they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named
from lbcompiler.ir import ops
from lbcompiler.ir.constants import mapped
from lbcompiler.ir.model import Array, Layer, Model, Weight
from lbcompiler.ir.outliers import Arrangement, Split, arranged
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.passes.channels import MULTIPLY, Channels, NoSourceError
from lbcompiler.passes.fuse_linear import EPILOGUE_OF

ADD = tvm.ir.Op.get("relax.add")
FLOAT = "float32"


@dataclass(frozen=True)
class SplitOutliers:
    """The split of each layer that has one, by the layer's name."""

    splits: Mapping[str, Split]
    name: ClassVar[str] = "split_outliers"

    def __call__(self, model: Model) -> Model:
        plan = _Plan(model.module, self.splits)
        weights = dict(model.weights)
        slices: dict[Any, Any] = {}
        changed: dict[str, list[Layer]] = {}

        def visit(call: Any, scope: Scope) -> Any:
            if call.op != ops.DENSE:
                return None
            name, rows = str(call.attrs["layer"]), plan.rows.get(scope.variable)
            found = plan.arrangements.get(name)
            if rows is None and found is None:
                return None
            dense = scope.emit(_ordered(call, rows, found, scope, weights))
            layer = model.layers[name]
            if rows is not None:
                layer = layer.without_output("reordered for its reader")
            if name not in self.splits or found is None:
                changed[name] = [layer]
                return dense
            x, split = call.args[0], self.splits[name]
            if (x, found.taken) not in slices:
                slices[x, found.taken] = _cut(x, found, scope)
            second = _outliers_of(layer, split, found)
            layer = layer.without_output("its outliers are multiplied apart")
            changed[name] = [replace(layer, outliers=found.count), second]
            taken = _in_order(rows, found.outliers)
            w = mapped(call.args[1], "outliers", taken, scope, weights, second.shape)
            product = ops.dense(slices[x, found.taken], w, layer=second.name)
            return relax.op.add(dense, scope.emit(product))

        module = rewrite(model.module, visit)
        layers = {
            layer.name: layer
            for old in model.layers.values()
            for layer in changed.get(old.name, [old])
        }
        return replace(model, module=module, weights=weights, layers=layers)


def can_reorder(module: Any) -> dict[str, str]:
    """By layer: why its input channels stay in their order, "" where they can be reordered."""
    channels, found = Channels(module), {}
    for x, layers in channels.groups.items():
        try:
            _producers(x, channels)
            reason = ""
        except NoSourceError as refusal:
            reason = str(refusal)
        found.update(dict.fromkeys(layers, reason))
    return found


def arrangements(module: Any, splits: Mapping[str, Split]) -> dict[str, Arrangement]:
    """By layer, also of those that are not split but read an input that is reordered: what
    `SplitOutliers` makes of their weights. Raises ConfigError."""
    return _Plan(module, splits).arrangements


def row_orders(module: Any, splits: Mapping[str, Split]) -> dict[str, Array]:
    """By layer, of those that compute an input that is reordered: the order of their rows."""
    plan = _Plan(module, splits)
    return {plan.layers[variable]: order for variable, order in plan.rows.items()}


class _Plan:
    """arrangements: by layer; rows: the order of the rows of linears that are reordered, by their
    variables; layers: their names, by their variables.
    """

    def __init__(self, module: Any, splits: Mapping[str, Split]) -> None:
        self.arrangements: dict[str, Arrangement] = {}
        self.rows: dict[Any, np.ndarray] = {}
        self.layers: dict[Any, str] = {}
        channels, missing = Channels(module), set(splits)
        for x, layers in channels.groups.items():
            given = {layer: splits[layer] for layer in layers if layer in splits}
            missing -= given.keys()
            if given:
                self._add(x, layers, given, channels)
        if missing:
            raise ConfigError(
                f"layer {sorted(missing)[0]!r} has no outliers to split off: it is no linear or "
                "ungrouped convolution with a constant weight"
            )

    def _add(
        self, x: Any, layers: tuple[str, ...], given: Mapping[str, Split], channels: Channels
    ) -> None:
        k, first = int(x.ty.shape.values[-1]), next(iter(given.values()))
        try:  # layers with other outliers cannot each have their order
            producers = _producers(x, channels) if set(given.values()) == {first} else []
        except NoSourceError:
            producers = []
        for layer, split in given.items():
            found = arranged(layer, k, split, reorders=bool(producers))
            self.arrangements[layer] = found
        if np.array_equal(found.order, np.arange(k)):
            return
        for layer in layers:
            self.arrangements.setdefault(layer, Arrangement(found.order, ()))
        self.rows.update(dict.fromkeys(producers, found.order))
        self.layers.update({var: str(channels.bound[var].attrs["layer"]) for var in producers})


def _producers(x: Any, channels: Channels) -> list[Any]:
    """The linears whose rows are x's channels, by their variables. Raises NoSourceError."""
    if channels.uses[x] != len(channels.groups.get(x, ())):
        raise NoSourceError("its input is read by others than linears")
    return _linears(x, channels)


def _linears(var: Any, channels: Channels) -> list[Any]:
    call: Any = channels.bound.get(var)
    if not isinstance(call, relax.Call):
        raise NoSourceError("its input is an input of the model")
    if call.op == ops.DENSE and channels.is_dense(call):
        return [var]
    if getattr(call.op, "name", "") in EPILOGUE_OF:
        return _linears(channels.alone(call.args[0]), channels)
    if call.op in (ADD, MULTIPLY):
        extents = [operand.ty.shape.values[-1:] for operand in (*call.args, var)]
        if len({tuple(map(str, last)) for last in extents}) > 1:
            raise NoSourceError("its input is computed from numbers that all channels share")
        return [
            found for operand in call.args for found in _linears(channels.alone(operand), channels)
        ]
    raise NoSourceError(f"its input is computed by {call.op.name}, whose channels have their order")


def _cut(x: Any, arrangement: Arrangement, scope: Scope) -> Any:
    axis = len(x.ty.shape.values) - 1
    slices = [
        scope.emit(relax.op.strided_slice(x, [axis], [start], [end]))
        for start, end in arrangement.taken
    ]
    return slices[0] if len(slices) == 1 else scope.emit(relax.op.concat(slices, axis))


def _outliers_of(layer: Layer, split: Split, arrangement: Arrangement) -> Layer:
    """The record of the second product, with its formats: `select_formats` leaves it so."""
    name, shape = f"{layer.name}.outliers", (layer.shape[0], arrangement.count)
    blank = Layer(name, layer.op, shape, output_missing=f"a part of {layer.name}")
    if split.format == FLOAT:
        return replace(blank, reason=f"outlier channels of {layer.name!r} stay in float")
    fmt = format_named(split.format)
    return replace(
        blank,
        requested=fmt.name,
        realized=fmt.name,
        weight_format=fmt.name,
        activation_format=fmt.name,
        quantizer="rtn",
        scale_rule=fmt.default_rule,
        activation_scale_rule=fmt.default_rule,
    )


def _ordered(
    call: Any,
    rows: np.ndarray | None,
    columns: Arrangement | None,
    scope: Scope,
    weights: dict[str, Weight],
) -> Any:
    """The dense with its rows and columns in their order, and what is taken out zero."""
    x, w, *bias = call.args
    kind = "rest" if columns is not None and columns.taken else "reordered"

    def cut(weight: Array) -> Array:
        return weight if columns is None else columns.rest(weight)

    weight = mapped(w, kind, _in_order(rows, cut), scope, weights)
    if bias and rows is not None:
        bias = [mapped(bias[0], "reordered", _in_order(rows), scope, weights)]
    return ops.dense(x, weight, *bias, layer=str(call.attrs["layer"]))


def _in_order(
    rows: np.ndarray | None, fn: Callable[[Array], Array] = np.ascontiguousarray
) -> Callable[[Array], Array]:
    """fn of a weight's rows in that order."""
    return fn if rows is None else lambda weight: fn(weight[rows])
