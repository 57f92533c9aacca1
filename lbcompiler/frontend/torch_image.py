"""Converters of torch's operators on images: pooling, resizing, padding.

One-dimensional forms are the two-dimensional ones on an image of height 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_build import Build, Expr
from lbcompiler.frontend.torch_shapes import Extent

op = relax.op
Converter = Callable[..., Any]


def _as_image(b: Build, x: Expr, count: int) -> Expr:
    """(N, C, ...) of `count` spatial axes, or without the N, as (N, C, H, W)."""
    shape = b.shape(x)
    batch = shape[: len(shape) - count]
    batch = [1] * (2 - len(batch)) + batch
    return b.reshape(x, [*batch, *[1] * (2 - count), *shape[len(shape) - count :]])


def _pair(value: Any, count: int, filler: int) -> list[int]:
    values = [int(v) for v in (value if isinstance(value, list) else [value])]
    values = values * count if len(values) == 1 else values
    return [filler] * (2 - count) + values


def _overhang(b: Build, x: Expr, axis: int, spans: Sequence[int], ceil_mode: bool) -> int:
    """How far the last window of a pool reaches over the padded image, which only ceil_mode allows.

    `spans`: (window, stride, padding) of the axis."""
    if not ceil_mode:
        return 0
    window, stride, padding = spans
    outputs = b.out_shape[axis - 4]
    reach = b.shapes.simplify((outputs - 1) * stride + window - b.shape(x)[axis] - 2 * padding)
    if not isinstance(reach, int):
        raise ModelError("ceil_mode of a pool needs a fixed image size: fix it with an input shape")
    return max(0, reach)


def maximum_pool(count: int) -> Converter:
    def convert(
        b: Build,
        x: Expr,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Expr:
        x = _as_image(b, x, count)
        kernel, strides = _pair(kernel, count, 1), _pair(stride or kernel, count, 1)
        pads, dilations = _pair(padding, count, 0), _pair(dilation, count, 1)
        windows = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        over = [
            _overhang(b, x, axis + 2, (windows[axis], strides[axis], pads[axis]), ceil_mode)
            for axis in range(2)
        ]
        padded = [*pads, pads[0] + over[0], pads[1] + over[1]]
        y = op.nn.max_pool2d(x, kernel, strides, padded, dilations)
        return b.reshape(b.emit(y), b.out_shape)

    return convert


def with_indices(function: Converter) -> Converter:
    """Only the values of (values, indices); the indices have no converter."""
    return lambda b, *arguments: [function(b, *arguments), None]


def average_pool(count: int) -> Converter:
    def convert(
        b: Build,
        x: Expr,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        counts_padding: bool = True,
        divisor: int | None = None,
    ) -> Expr:
        x = _as_image(b, x, count)
        kernel, strides = _pair(kernel, count, 1), _pair(stride or kernel, count, 1)
        pads = _pair(padding, count, 0)
        over = [
            _overhang(b, x, axis + 2, (kernel[axis], strides[axis], pads[axis]), ceil_mode)
            for axis in range(2)
        ]
        padded = [*pads, pads[0] + over[0], pads[1] + over[1]]
        includes = counts_padding or divisor is not None
        y = b.emit(op.nn.avg_pool2d(x, kernel, strides, padded, count_include_pad=includes))
        area = kernel[0] * kernel[1]
        if divisor is not None:
            y = b.emit(op.multiply(y, b.scalar(area / divisor, "float32")))
        elif includes and any(over):
            seen = [
                _seen(int(b.shape(x)[axis + 2]), kernel[axis], strides[axis], pads[axis], n)
                for axis, n in enumerate(b.shape(y)[2:])
            ]
            factor = (area / np.outer(*seen)).astype(np.float32)
            y = b.emit(op.multiply(y, relax.const(factor[None, None], "float32")))
        return b.reshape(y, b.out_shape)

    return convert


def _seen(extent: int, kernel: int, stride: int, padding: int, outputs: int) -> Any:
    """How many positions of each window lie in the padded image."""
    begin = np.arange(outputs) * stride
    return np.minimum(begin + kernel, extent + 2 * padding) - begin


def adaptive_pool(count: int, *, is_average: bool) -> Converter:
    def convert(b: Build, x: Expr, size: Any) -> Any:
        x = _as_image(b, x, count)
        outputs = [1] * (2 - count) + list(b.out_shape[-count:])
        y = b.emit(_adapted(b, x, outputs, is_average))
        y = b.reshape(y, b.out_shape)
        return y if is_average else [y, None]

    return convert


def _adapted(b: Build, x: Expr, outputs: Sequence[Extent], is_average: bool) -> Expr:
    single = [axis + 2 for axis, m in enumerate(outputs) if isinstance(m, int) and m == 1]
    if single:
        x = b.emit((op.mean if is_average else op.max)(x, single, True))
    extents = b.shape(x)[2:]
    kernel = [_divided(b, n, m) for n, m in zip(extents, outputs, strict=True)]
    if kernel == [1, 1]:
        return x
    if all(kernel):
        return (op.nn.avg_pool2d if is_average else op.nn.max_pool2d)(x, kernel, kernel)
    if is_average and all(isinstance(n, int) for n in [*extents, *outputs]):
        return op.nn.adaptive_avg_pool2d(x, list(outputs))
    raise ModelError(f"a pool to {outputs} is supported where that divides the image: {extents}")


def _divided(b: Build, extent: Extent, outputs: Extent) -> int:
    """The whole number extent / outputs, or 0."""
    if b.shapes.same(extent, outputs):
        return 1
    return _whole(b, extent, outputs)


def nearest(count: int) -> Converter:
    """interpolate(mode="nearest"): (size, scale factors); the fake tensor has the size, too."""

    def convert(b: Build, x: Expr, _: Any, *arguments: Any) -> Expr:
        scales = [s for s in _flat(arguments) if s is not None] or [None] * count
        shape = b.out_shape
        x = _as_image(b, x, count)
        target = [1] * (2 - count) + shape[-count:]
        factors = [_whole(b, m, n) for m, n in zip(target, b.shape(x)[2:], strict=True)]
        if all(factors):
            return b.reshape(_repeated(b, x, factors), shape)
        for axis, extent, scale in zip(range(4 - count, 4), target[-count:], scales, strict=True):
            x = b.emit(op.take(x, _sources(b, b.shape(x)[axis], extent, scale), axis, "clip"))
        return b.reshape(x, shape)

    return convert


def _sources(b: Build, extent: Extent, target: Extent, scale: Any) -> Expr:
    """floor(i * extent / target), in float32 as torch computes it, or with 1 / scale if stated."""
    if isinstance(extent, int) and isinstance(target, int):
        ratio = np.float32(extent / target if scale is None else 1 / scale)
        found = np.floor(np.arange(target, dtype=np.float32) * ratio).astype(np.int64)
        return relax.const(np.minimum(found, extent - 1), "int64")
    if scale is None:
        size, total = b.scalar(extent, "float32"), b.scalar(target, "float32")
        ratio = b.emit(op.divide(size, total))
    else:
        ratio = b.scalar(1 / scale, "float32")
    position = b.emit(op.multiply(b.cast(b.iota(target), "float32"), ratio))
    return b.cast(b.emit(op.floor(position)), "int64")


def smooth(method: str, count: int) -> Converter:
    """interpolate(mode="bilinear"), ...: (size, align_corners, scale factors)."""

    def convert(b: Build, x: Expr, size: Any, corners: bool, *arguments: Any) -> Expr:
        scales = [s for s in _flat(arguments) if s is not None]
        shape = b.out_shape
        x = _as_image(b, x, count)
        if size is None or scales:
            _check_scales(b, b.shape(x)[4 - count :], shape[-count:], scales)
        y = op.image.resize2d(
            x,
            [1] * (2 - count) + shape[-count:],
            method=method,
            coordinate_transformation_mode="align_corners" if corners else "half_pixel",
            cubic_alpha=-0.75,
        )
        return b.reshape(b.emit(y), shape)

    return convert


def _flat(values: Sequence[Any]) -> list[Any]:
    return [item for v in values for item in (v if isinstance(v, list) else [v])]


def _whole(b: Build, target: Extent, extent: Extent) -> int:
    """The whole number target / extent, or 0."""
    if isinstance(target, int) and isinstance(extent, int):
        return target // extent if target % extent == 0 else 0
    return next((k for k in range(1, 17) if b.shapes.same(target, extent * k)), 0)


def _check_scales(
    b: Build, before: Sequence[Extent], after: Sequence[Extent], scales: Sequence[Any]
) -> None:
    """torch steps by 1 / scale through the image: as by the sizes only where they agree."""
    for extent, target, scale in zip(before, after, scales, strict=True):
        fixed = isinstance(extent, int) and isinstance(target, int)
        if (fixed and extent * scale == target) or _whole(b, target, extent) == scale:
            continue
        raise ModelError(
            f"interpolate by {scale} from {extent} to {target} is not the ratio of the sizes: "
            "call it with recompute_scale_factor=True or with a size"
        )


def _repeated(b: Build, x: Expr, factors: Sequence[int]) -> Expr:
    """Each pixel `factors` times: a broadcast, which holds for symbolic sizes."""
    batch, channels, height, width = b.shape(x)
    down, right = factors
    x = b.reshape(x, [batch, channels, height, 1, width, 1])
    x = b.broadcast(x, [batch, channels, height, down, width, right])
    return b.reshape(x, [batch, channels, height * down, width * right])


def pad(
    b: Build, x: Expr, widths: Sequence[Any], mode: str = "constant", value: Any = None
) -> Expr:
    """Widths (before, after) from the last axis on; a negative one cuts."""
    if not all(isinstance(width, int) for width in widths):
        raise ModelError("padding by a symbolic amount is not supported: fix the input shape")
    rank = len(b.shape(x))
    pairs = [(0, 0)] * rank
    for i in range(len(widths) // 2):
        pairs[rank - 1 - i] = (widths[2 * i], widths[2 * i + 1])
    for axis, (before, after) in enumerate(pairs):
        if min(before, after) < 0:
            extent = b.shape(x)[axis]
            x = b.slice(x, axis, max(0, -before), extent + min(0, after))
    flat = [max(0, width) for pair in pairs for width in pair]
    if not any(flat):
        return x
    return op.nn.pad(x, flat, mode, float(value or 0))


def constant_pad(b: Build, x: Expr, widths: Sequence[Any], value: Any = 0) -> Expr:
    return pad(b, x, widths, "constant", value)


def edge_pad(mode: str) -> Converter:
    return lambda b, x, widths: pad(b, x, widths, mode)


CONVERTERS: dict[str, Converter] = {
    "adaptive_avg_pool1d": adaptive_pool(1, is_average=True),
    "adaptive_avg_pool2d": adaptive_pool(2, is_average=True),
    "_adaptive_avg_pool2d": adaptive_pool(2, is_average=True),
    "adaptive_max_pool1d": adaptive_pool(1, is_average=False),
    "adaptive_max_pool2d": adaptive_pool(2, is_average=False),
    "avg_pool1d": average_pool(1),
    "avg_pool2d": average_pool(2),
    "constant_pad_nd": constant_pad,
    "max_pool1d": maximum_pool(1),
    "max_pool2d": maximum_pool(2),
    "max_pool2d_with_indices": with_indices(maximum_pool(2)),
    "pad": pad,
    "reflection_pad1d": edge_pad("reflect"),
    "reflection_pad2d": edge_pad("reflect"),
    "replication_pad1d": edge_pad("replicate"),
    "replication_pad2d": edge_pad("replicate"),
    "upsample_bicubic2d": smooth("cubic", 2),
    "upsample_bilinear2d": smooth("linear", 2),
    "upsample_linear1d": smooth("linear", 1),
    "upsample_nearest1d": nearest(1),
    "upsample_nearest2d": nearest(2),
}
