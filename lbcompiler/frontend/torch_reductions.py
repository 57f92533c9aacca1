"""Converters of torch's reductions, normalizations and softmax."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_build import Build, Expr
from lbcompiler.frontend.torch_shapes import Extent
from lbcompiler.frontend.torch_views import axis_of

op = relax.op
Converter = Callable[..., Any]
Axes = int | Sequence[int] | None


def axes_of(b: Build, x: Expr, axes: Axes) -> list[int]:
    """The reduced axes from the front; none stated means all."""
    if axes is None or axes == []:
        return list(range(len(b.shape(x))))
    return [axis_of(b, x, axis) for axis in ([axes] if isinstance(axes, int) else axes)]


def reduction(function: Callable[..., Expr]) -> Converter:
    """sum, mean, amax, ...: computed in the dtype of the result."""

    def convert(b: Build, x: Expr, axes: Axes = None, keepdim: Any = False, *_: Any) -> Expr:
        if not isinstance(keepdim, bool):
            keepdim = False  # of the overload without axes, where the dtype comes second
        if not isinstance(axes, int | list):
            axes = None
        return function(b.cast(x, b.out_dtype), axes_of(b, x, axes), keepdim)

    return convert


def truth(function: Callable[..., Expr]) -> Converter:
    """any and all, as the maximum and minimum of 0 and 1."""

    def convert(b: Build, x: Expr, axes: Axes = None, keepdim: bool = False) -> Expr:
        number = b.cast(b.cast(x, "bool"), "int32")
        return b.cast(b.emit(function(number, axes_of(b, x, axes), keepdim)), "bool")

    return convert


def extremum(function: Callable[..., Expr], position: Callable[..., Expr]) -> Converter:
    """max and min: of everything, of two tensors, or along an axis together with the position."""
    pairwise = {op.max: op.maximum, op.min: op.minimum}[function]

    def convert(b: Build, x: Expr, axis: Any = None, keepdim: bool = False) -> Any:
        if axis is None:
            return function(x)
        if not isinstance(axis, int):
            return pairwise(b.cast(x, b.out_dtype), b.cast(axis, b.out_dtype))
        axis = axis_of(b, x, axis)
        return [function(x, axis, keepdim), position(x, axis, keepdim)]

    return convert


def argument(function: Callable[..., Expr]) -> Converter:
    def convert(b: Build, x: Expr, axis: int | None = None, keepdim: bool = False) -> Expr:
        if axis is None:
            return b.reshape(b.emit(function(b.emit(op.flatten(x)), 0, False)), b.out_shape)
        return function(x, axis_of(b, x, axis), keepdim)

    return convert


def _count(b: Build, x: Expr, axes: Sequence[int]) -> Extent:
    count: Extent = 1
    for axis in axes:
        count = count * b.shape(x)[axis]
    return count


def variance(
    b: Build, x: Expr, axes: Axes = None, correction: Any = 1, keepdim: bool = False
) -> Expr:
    """sum((x - mean)^2) / (n - correction)"""
    if isinstance(correction, bool):  # the older overload says whether it is unbiased
        correction = int(correction)
    reduced = axes_of(b, x, axes)
    population = b.emit(op.variance(x, reduced, keepdim))
    correction = 1 if correction is None else correction
    if correction == 0:
        return population
    count = _count(b, x, reduced)
    if isinstance(count, int):
        return op.multiply(population, b.scalar(count / (count - correction), "float32"))
    number = b.scalar(count, "float32")
    rest = b.emit(op.subtract(number, b.scalar(float(correction), "float32")))
    return op.multiply(population, b.emit(op.divide(number, rest)))


def variance_of_all(b: Build, x: Expr, unbiased: bool = True) -> Expr:
    return variance(b, x, None, unbiased)


def root(function: Converter) -> Converter:
    """A standard deviation from its variance."""
    return lambda b, *arguments: op.sqrt(b.emit(function(b, *arguments)))


def variance_and_mean(
    b: Build, x: Expr, axes: Axes = None, correction: Any = 1, keepdim: bool = False
) -> list[Expr]:
    return [variance(b, x, axes, correction, keepdim), op.mean(x, axes_of(b, x, axes), keepdim)]


def norm(
    b: Build, x: Expr, order: Any = 2, axes: Axes = None, keepdim: bool = False, *_: Any
) -> Expr:
    reduced = axes_of(b, x, axes)
    if order in (2, None):
        return op.sqrt(b.emit(op.sum(b.emit(op.multiply(x, x)), reduced, keepdim)))
    size = b.emit(op.abs(x))
    if order == 1:
        return op.sum(size, reduced, keepdim)
    if order == np.inf:
        return op.max(size, reduced, keepdim)
    raise ModelError(f"a norm of order {order} is not supported: 1, 2 and inf are")


def cumulative_sum(b: Build, x: Expr, axis: int, *_: Any) -> Expr:
    """y[i] = sum of x[j] over j <= i: a masked reduction over a square.

    TVM's own scan refuses symbolic extents. Where cumsum appears (positions from a mask) the
    square is no larger than the attention scores of one head.
    """
    x = b.cast(x, b.out_dtype)
    shape = b.shape(x)
    if not shape:
        return x
    axis = axis_of(b, x, axis)
    extent, tail = shape[axis], [1] * (len(shape) - axis - 1)
    row = b.reshape(b.iota(extent), [extent, 1, *tail])
    column = b.reshape(b.iota(extent), [1, extent, *tail])
    kept = b.emit(op.less_equal(column, row))
    terms = b.emit(op.where(kept, b.emit(op.expand_dims(x, axis)), b.scalar(0, b.out_dtype)))
    return op.sum(terms, axis + 1)


def softmax(b: Build, x: Expr, axis: int, *_: Any) -> Expr:
    return op.nn.softmax(b.cast(x, b.out_dtype), axis_of(b, x, axis))


def log_softmax(b: Build, x: Expr, axis: int, *_: Any) -> Expr:
    return op.nn.log_softmax(b.cast(x, b.out_dtype), axis_of(b, x, axis))


def _filled(shape: Sequence[int], value: float) -> Expr:
    return relax.const(np.full(shape, value, np.float32), "float32")


def layer_norm(
    b: Build, x: Expr, shape: Sequence[int], weight: Any, bias: Any, eps: float = 1e-5, *_: Any
) -> Expr:
    rank = len(b.shape(x))
    axes = list(range(rank - len(shape), rank))
    weight = _filled(shape, 1) if weight is None else weight
    bias = _filled(shape, 0) if bias is None else bias
    return op.nn.layer_norm(x, weight, bias, axes, eps)


def native_layer_norm(b: Build, *arguments: Any) -> list[Expr | None]:
    return [layer_norm(b, *arguments), None, None]


def rms_norm(b: Build, x: Expr, shape: Sequence[int], weight: Any = None, eps: Any = None) -> Expr:
    """x / sqrt(mean(x^2) + eps) * weight"""
    rank = len(b.shape(x))
    axes = list(range(rank - len(shape), rank))
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    mean = b.emit(op.mean(b.emit(op.multiply(x, x)), axes, True))
    scale = b.emit(op.rsqrt(b.emit(op.add(mean, b.scalar(eps, "float32")))))
    normal = b.emit(op.multiply(x, scale))
    return normal if weight is None else op.multiply(normal, weight)


def group_norm(
    b: Build, x: Expr, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Expr:
    shape = b.shape(x)
    weight = _filled([int(shape[1])], 1) if weight is None else weight
    bias = _filled([int(shape[1])], 0) if bias is None else bias
    return op.nn.group_norm(x, weight, bias, groups, 1, list(range(2, len(shape))), eps)


def batch_norm(
    b: Build,
    x: Expr,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Expr:
    if training or mean is None:
        return batch_norm_in_training(b)
    b.record_batch_norm()
    return _normalized(b, x, weight, bias, mean, var, eps)


def batch_norm_in_training(*_: Any) -> Expr:
    raise ModelError("batch norm in training mode: call model.eval() before the export")


def batch_norm_inference(
    b: Build, x: Expr, weight: Any, bias: Any, mean: Any, var: Any, momentum: float, eps: float
) -> list[Expr | None]:
    return [_normalized(b, x, weight, bias, mean, var, eps), None, None]


def _normalized(b: Build, x: Expr, weight: Any, bias: Any, mean: Any, var: Any, eps: float) -> Expr:
    channels = b.shape(x)[1]
    weight = _filled([channels], 1) if weight is None else weight
    bias = _filled([channels], 0) if bias is None else bias
    call = op.nn.batch_norm(x, weight, bias, mean, var, 1, epsilon=eps, training=False)
    return b.emit(call)[0]


def instance_norm(
    b: Build, x: Expr, weight: Any, bias: Any, mean: Any, var: Any, uses_input: bool, *rest: Any
) -> Expr:
    if not uses_input:
        return _normalized(b, x, weight, bias, mean, var, rest[1])
    return group_norm(b, x, int(b.shape(x)[1]), weight, bias, rest[1])


CONVERTERS: dict[str, Converter] = {
    "_log_softmax": log_softmax,
    "_native_batch_norm_legit_functional": batch_norm_in_training,
    "_native_batch_norm_legit_no_training": batch_norm_inference,
    "_softmax": softmax,
    "all": truth(op.min),
    "amax": reduction(op.max),
    "amin": reduction(op.min),
    "any": truth(op.max),
    "argmax": argument(op.argmax),
    "argmin": argument(op.argmin),
    "batch_norm": batch_norm,
    "cumsum": cumulative_sum,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "linalg_vector_norm": norm,
    "log_softmax": log_softmax,
    "max": extremum(op.max, op.argmax),
    "mean": reduction(op.mean),
    "min": extremum(op.min, op.argmin),
    "native_layer_norm": native_layer_norm,
    "norm": norm,
    "prod": reduction(op.prod),
    "rms_norm": rms_norm,
    "softmax": softmax,
    "std": root(variance),
    "std.default": root(variance_of_all),
    "sum": reduction(op.sum),
    "var": variance,
    "var.default": variance_of_all,
    "var_mean": variance_and_mean,
}
