"""Resize and Upsample, an axis at a time, for static and dynamic sizes alike.

Every interpolation ONNX defines is a weighted sum of a few positions along each axis. Positions
and weights are arithmetic on the output coordinate: computed now where the sizes are known, in
the graph where they are not. Nearest by a whole factor, what most models do, is a repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Converter, Expr, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_move import arange, expand
from lbcompiler.frontend.shapes import Size, is_known
from lbcompiler.ir.model import Array

op = relax.op


@dataclass(frozen=True)
class Axis:
    """How one axis is resized. `scale` is out/in as ONNX counts it, None for out/in of dynamic
    sizes."""

    axis: int
    extent: Size
    out: Size
    scale: float | None
    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool


def _upsample(graph: Graph, node: Node) -> Value:
    scales = node.attribute("scales") or graph.require_array(node[1], "the scale").ravel().tolist()
    return _resize(graph, node, scales, None, "asymmetric", "floor")


def _resize_node(graph: Graph, node: Node) -> Value:
    for name in ("antialias", "keep_aspect_ratio_policy"):
        if node.attribute(name, 0) not in (0, "stretch"):
            raise ModelError(f"{name} cannot be compiled")
    if node.opset < 11:
        return _upsample(graph, node)
    coordinates = node.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates == "tf_crop_and_resize":
        raise ModelError("tf_crop_and_resize cannot be compiled")
    nearest = node.attribute("nearest_mode", "round_prefer_floor")
    sizes = graph.require_sizes(node[3], "its size") if node.has(3) else None
    scales = None if sizes else graph.require_array(node[2], "the scale").ravel().tolist()
    return _resize(graph, node, scales, sizes, coordinates, nearest)


def _resize(
    graph: Graph,
    node: Node,
    scales: Sequence[float] | None,
    sizes: Sequence[Size] | None,
    coordinates: str,
    nearest: str,
) -> Value:
    x = graph.tensor(node[0])
    axes = [axis % len(x.shape) for axis in node.attribute("axes", list(range(len(x.shape))))]
    mode = node.attribute("mode", "nearest")
    for i, axis in enumerate(axes):
        extent = x.shape[axis]
        if sizes is not None:
            out = sizes[i]
            scale = out / extent if is_known(out) and is_known(extent) else None
        else:
            assert scales is not None
            scale = scales[i]
            out = _scaled(graph, extent, scale)
        if graph.shapes.equal(out, extent) and scale in (None, 1.0):
            continue
        x = _along(
            graph,
            x,
            Axis(
                axis,
                extent,
                out,
                scale,
                mode,
                coordinates,
                nearest,
                node.attribute("cubic_coeff_a", -0.75),
                bool(node.attribute("exclude_outside", 0)),
            ),
        )
    return x


def _scaled(graph: Graph, extent: Size, scale: float) -> Size:
    """floor(extent * scale); exact for a dynamic extent where the scale is a ratio of small
    integers."""
    if is_known(extent):
        return math.floor(extent * scale)
    numerator, denominator = scale.as_integer_ratio()
    if denominator > 2**10:
        raise ModelError(
            f"the scale {scale} of a dynamic dimension is no simple ratio: fix the input shape"
        )
    return graph.shapes.floor_divide(graph.shapes.simple(extent * numerator), denominator)


def _along(graph: Graph, x: Tensor, how: Axis) -> Tensor:
    if how.scale is not None and _repeats(how):
        return _repeated(graph, x, how.axis, int(how.scale))
    if is_known(how.extent) and is_known(how.out):
        return _weighted(graph, x, how, _positions(np.arange(how.out, dtype=np.float64), how))
    return _dynamic(graph, x, how)


def _repeats(how: Axis) -> bool:
    """Whether nearest is each element a whole number of times."""
    if how.mode != "nearest" or how.scale is None or how.scale < 1 or how.scale != int(how.scale):
        return False
    if how.coordinates == "asymmetric":
        return how.nearest == "floor"
    return how.coordinates == "half_pixel" and how.nearest.startswith("round_prefer")


def _repeated(graph: Graph, x: Tensor, axis: int, times: int) -> Tensor:
    shape = list(x.shape)
    thin = graph.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
    wide = expand(graph, thin, [*shape[: axis + 1], times, *shape[axis + 1 :]])
    return graph.reshape(wide, [*shape[:axis], shape[axis] * times, *shape[axis + 1 :]])


def _positions(out: Array, how: Axis) -> Array:
    """The input coordinate of each output coordinate."""
    scale = how.scale or how.out / how.extent
    if how.coordinates == "asymmetric":
        return np.asarray(out / scale)
    if how.coordinates == "align_corners":
        return np.asarray(out * ((how.extent - 1) / max(how.out - 1, 1)))
    if how.coordinates == "half_pixel_symmetric":
        return _symmetric(out, how, scale)
    if how.coordinates == "pytorch_half_pixel" and how.out == 1:
        return np.zeros_like(out)
    shift = 0.0 if how.coordinates == "tf_half_pixel_for_nn" else 0.5
    return np.asarray((out + 0.5) / scale - shift)


def _symmetric(out: Array, how: Axis, scale: float) -> Array:
    adjustment = how.out / (scale * how.extent)
    offset = how.extent / 2 * (1 - adjustment)
    return np.asarray(offset + (out + 0.5) / scale - 0.5)


ROUND: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _weighted(graph: Graph, x: Tensor, how: Axis, at: Array) -> Tensor:
    """Static sizes: indices and weights are constants."""
    last = how.extent - 1
    if how.mode == "nearest":
        index = np.clip(ROUND[how.nearest](at), 0, last)
        return _taken(graph, x, how.axis, index)
    base = np.floor(at)
    offsets = (0, 1) if how.mode == "linear" else (-1, 0, 1, 2)
    weights = [_weight(at - base - offset, how) for offset in offsets]
    if how.exclude_outside:
        inside = [(base + offset >= 0) & (base + offset <= last) for offset in offsets]
        weights = [np.where(keep, weight, 0) for keep, weight in zip(inside, weights, strict=True)]
        total = np.sum(weights, axis=0)
        weights = [weight / total for weight in weights]
    shape = [how.out if i == how.axis else 1 for i in range(len(x.shape))]
    out: Expr = None
    for offset, weight in zip(offsets, weights, strict=True):
        taken = _taken(graph, x, how.axis, np.clip(base + offset, 0, last))
        factor = graph.expr(graph.constant(weight.astype(np.float32).reshape(shape)))
        term = op.multiply(taken.expr, factor)
        out = term if out is None else op.add(out, term)
    return graph.emit(out)


def _weight(distance: Array, how: Axis) -> Array:
    d = np.abs(distance)
    if how.mode == "linear":
        return np.asarray(np.maximum(0, 1 - d))
    a = how.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _taken(graph: Graph, x: Tensor, axis: int, index: Array) -> Tensor:
    at = graph.constant(index.astype(np.int64))
    return graph.emit(op.take(x.expr, graph.expr(at), axis, mode="clip"))


def _dynamic(graph: Graph, x: Tensor, how: Axis) -> Tensor:
    """Dynamic sizes: coordinates from a range, in the graph."""
    if how.mode == "cubic" or how.coordinates not in (
        "asymmetric",
        "half_pixel",
        "pytorch_half_pixel",
        "align_corners",
    ):
        raise ModelError(
            f"{how.mode} by {how.coordinates} of a dynamic dimension cannot be compiled: fix the "
            "input shape"
        )
    one, half = (graph.scalar(number, "float32") for number in (1.0, 0.5))
    out = op.astype(arange(graph, 0, how.out).expr, "float32")
    sizes = [op.astype(graph.extent(size), "float32") for size in (how.extent, how.out)]
    if how.coordinates == "align_corners":
        steps = op.maximum(op.subtract(sizes[1], one), one)
        at = op.divide(op.multiply(out, op.subtract(sizes[0], one)), steps)
    else:
        scale = (
            op.divide(sizes[1], sizes[0])
            if how.scale is None
            else graph.scalar(how.scale, "float32")
        )
        centered = how.coordinates != "asymmetric"
        at = op.divide(op.add(out, half) if centered else out, scale)
        at = op.subtract(at, half) if centered else at
    at = graph.emit(at)
    if how.mode == "nearest":
        rounded = {
            "round_prefer_floor": lambda: op.ceil(op.subtract(at.expr, half)),
            "round_prefer_ceil": lambda: op.floor(op.add(at.expr, half)),
            "floor": lambda: op.floor(at.expr),
            "ceil": lambda: op.ceil(at.expr),
        }[how.nearest]()
        return _taken_at(graph, x, how, rounded)
    base = graph.emit(op.floor(at.expr))
    share = graph.emit(op.subtract(at.expr, base.expr))
    low, high = (_taken_at(graph, x, how, e) for e in (base.expr, op.add(base.expr, one)))
    factor = graph.reshape(share, [how.out if i == how.axis else 1 for i in range(len(x.shape))])
    mixed = op.add(
        op.multiply(low.expr, op.subtract(one, factor.expr)), op.multiply(high.expr, factor.expr)
    )
    return graph.emit(mixed)


def _taken_at(graph: Graph, x: Tensor, how: Axis, position: Expr) -> Tensor:
    last = graph.extent(graph.shapes.simple(how.extent - 1))
    index = op.minimum(op.maximum(op.astype(position, "int64"), graph.scalar(0, "int64")), last)
    return graph.emit(op.take(x.expr, index, how.axis, mode="clip"))


CONVERTERS: dict[str, Converter] = {"Resize": _resize_node, "Upsample": _upsample}
