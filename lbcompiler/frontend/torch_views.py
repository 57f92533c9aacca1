"""Converters of torch's operators that move elements: reshape, slice, join, pick, fill.

Shapes come from the fake tensors, so `view`, `flatten`, `squeeze` and their kin are one reshape.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, tirx

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_build import Build, Expr
from lbcompiler.frontend.torch_shapes import Extent
from lbcompiler.frontend.torch_values import is_tensor

op = relax.op
Converter = Callable[..., Any]


def axis_of(b: Build, x: Expr, axis: int) -> int:
    """A negative axis counted from the front."""
    return axis % max(1, len(b.shape(x)))


def reshape(b: Build, x: Expr, *_: Any) -> Expr:
    return b.reshape(x, b.out_shape)


def expand(b: Build, x: Expr, *_: Any) -> Expr:
    return b.broadcast(x, b.out_shape)


def permute(b: Build, x: Expr, axes: Sequence[int]) -> Expr:
    return op.permute_dims(x, [axis_of(b, x, axis) for axis in axes])


def transpose(b: Build, x: Expr, first: int = 0, second: int = 1) -> Expr:
    axes = list(range(len(b.shape(x))))
    if not axes:
        return x
    first, second = axis_of(b, x, first), axis_of(b, x, second)
    axes[first], axes[second] = axes[second], axes[first]
    return op.permute_dims(x, axes)


def matrix_transpose(b: Build, x: Expr) -> Expr:
    return transpose(b, x, 0, 1) if len(b.shape(x)) == 2 else x


def _bounded(b: Build, position: Extent, extent: Extent) -> Extent:
    """A slice's end in Python's sense as 0 <= position <= extent."""
    if isinstance(position, int) and isinstance(extent, int):
        return max(0, min(position + extent if position < 0 else position, extent))
    if isinstance(position, int):
        position = position if position >= 0 else position + extent
    return b.shapes.simplify(tirx.max(0, tirx.min(position, extent)))


def slice_axis(
    b: Build, x: Expr, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Expr:
    axis = axis_of(b, x, axis)
    extent = b.shape(x)[axis]
    begin = 0 if start is None else _bounded(b, start, extent)
    if end is None or (isinstance(end, int) and end >= 2**62):
        end = extent
    return b.slice(x, axis, begin, _bounded(b, end, extent), step)


def narrow(b: Build, x: Expr, axis: int, start: Extent, length: Extent) -> Expr:
    axis = axis_of(b, x, axis)
    if isinstance(start, int) and start < 0:
        start = start + b.shape(x)[axis]
    return b.slice(x, axis, start, start + length)


def select(b: Build, x: Expr, axis: int, index: Extent) -> Expr:
    axis = axis_of(b, x, axis)
    if isinstance(index, int) and index < 0:
        index = b.shapes.simplify(index + b.shape(x)[axis])
    return b.reshape(b.slice(x, axis, index, index + 1), b.out_shape)


def split(b: Build, x: Expr, sizes: Any, axis: int = 0) -> list[Expr]:
    """The parts' sizes are those of the fake tensors, for `split` and `split_with_sizes` alike."""
    return chunk(b, x, sizes, axis)


def chunk(b: Build, x: Expr, _: Any, axis: int = 0) -> list[Expr]:
    axis = axis_of(b, x, axis)
    parts, begin = [], 0
    for fake in b.node.meta["val"]:
        end = b.shapes.simplify(begin + b.shapes.extent(fake.shape[axis]))
        parts.append(b.slice(x, axis, begin, end))
        begin = end
    return parts


def unbind(b: Build, x: Expr, axis: int = 0) -> list[Expr]:
    axis = axis_of(b, x, axis)
    shape = b.out_shape
    count = len(b.node.meta["val"])
    return [b.reshape(b.slice(x, axis, i, i + 1), shape) for i in range(count)]


def concatenate(b: Build, tensors: Sequence[Expr], axis: int = 0) -> Expr:
    rank = len(b.out_shape)
    tensors = [x for x in tensors if len(b.shape(x)) == rank]  # torch skips empty vectors
    tensors = [b.cast(x, b.out_dtype) for x in tensors]
    return op.concat(tensors, axis % rank) if len(tensors) > 1 else tensors[0]


def stack(b: Build, tensors: Sequence[Expr], axis: int = 0) -> Expr:
    axis %= len(b.out_shape)
    return concatenate(b, [b.emit(op.expand_dims(x, axis)) for x in tensors], axis)


def repeat(b: Build, x: Expr, counts: Sequence[Extent]) -> Expr:
    """Tile: by a broadcast, so that a count may be symbolic."""
    shape = b.shape(x)
    shape = [1] * (len(counts) - len(shape)) + shape
    split_shape = [extent for n in shape for extent in (1, n)]
    wide = [extent for count, n in zip(counts, shape, strict=True) for extent in (count, n)]
    return b.reshape(b.broadcast(b.reshape(x, split_shape), wide), b.out_shape)


def repeat_interleave(b: Build, x: Expr, count: Any, axis: int | None = None, *_: Any) -> Expr:
    if not isinstance(count, int):
        raise ModelError("repeat_interleave is supported for one fixed count")
    if axis is None:
        x, axis = b.reshape(x, [_product(b.shape(x))]), 0
    return op.repeat(x, count, axis_of(b, x, axis))


def _product(extents: Sequence[Extent]) -> Extent:
    result: Extent = 1
    for extent in extents:
        result = result * extent
    return result


def flip(b: Build, x: Expr, axes: Sequence[int]) -> Expr:
    for axis in axes:
        x = b.emit(op.flip(x, axis_of(b, x, axis)))
    return x


def roll(b: Build, x: Expr, shifts: Sequence[int], axes: Sequence[int] = ()) -> Expr:
    if not axes:
        raise ModelError("roll is supported along stated dimensions")
    for shift, axis in zip(shifts, axes, strict=True):
        axis = axis_of(b, x, axis)
        extent = b.shape(x)[axis]
        at = (
            (-shift) % extent
            if isinstance(extent, int)
            else extent - shift
            if shift > 0
            else -shift
        )
        if at == 0:
            continue
        parts = [b.slice(x, axis, at, extent), b.slice(x, axis, 0, at)]
        x = b.reshape(b.emit(op.concat(parts, axis)), b.out_shape)
    return x


def pixel_shuffle(b: Build, x: Expr, factor: int) -> Expr:
    *batch, channels, height, width = b.shape(x)
    rank = len(batch)
    inner = channels // (factor * factor)
    x = b.reshape(x, [*batch, inner, factor, factor, height, width])
    axes = [*range(rank), *(rank + i for i in (0, 3, 1, 4, 2))]
    return b.reshape(b.emit(op.permute_dims(x, axes)), b.out_shape)


def pixel_unshuffle(b: Build, x: Expr, factor: int) -> Expr:
    *batch, channels, _, _ = b.shape(x)
    *_, height, width = b.out_shape
    rank = len(batch)
    x = b.reshape(x, [*batch, channels, height, factor, width, factor])
    axes = [*range(rank), *(rank + i for i in (0, 2, 4, 1, 3))]
    return b.reshape(b.emit(op.permute_dims(x, axes)), b.out_shape)


def wrapped(b: Build, indices: Expr, extent: Extent) -> Expr:
    """Indices with negative ones counted from the end, as torch counts them."""
    indices = b.cast(indices, "int64")
    end = b.emit(op.add(indices, b.scalar(extent, "int64")))
    return b.emit(op.where(b.emit(op.less(indices, b.scalar(0, "int64"))), end, indices))


def embedding(_: Build, weight: Expr, indices: Expr, *__: Any) -> Expr:
    """An id outside the table reads the nearest row: never memory that is not the table's."""
    return op.take(weight, indices, axis=0, mode="clip")


def index_select(b: Build, x: Expr, axis: int, indices: Expr) -> Expr:
    return op.take(x, b.cast(indices, "int64"), axis=axis_of(b, x, axis), mode="clip")


def gather(b: Build, x: Expr, axis: int, indices: Expr, *_: Any) -> Expr:
    axis = axis_of(b, x, axis)
    return op.gather_elements(x, b.cast(indices, "int64"), axis)


def index(b: Build, x: Expr, indices: Sequence[Expr | None]) -> Expr:
    """x[:, i, j]: the indexed axes go first, are picked together, and go where torch puts them."""
    axes = [axis for axis, item in enumerate(indices) if item is not None]
    picks = [item for item in indices if item is not None]
    if any(b.dtype(item) == "bool" for item in picks):
        raise ModelError("the size of a selection by a mask depends on the data")
    shape = b.shape(x)
    picks = [wrapped(b, item, shape[axis]) for item, axis in zip(picks, axes, strict=True)]
    if len(picks) == 1:
        return op.take(x, picks[0], axis=axes[0], mode="clip")
    rest = [axis for axis in range(len(shape)) if axis not in axes]
    if axes != list(range(len(axes))):
        x = b.emit(op.permute_dims(x, [*axes, *rest]))
    picked = b.emit(op.index_tensor(x, picks))
    if axes != list(range(axes[0], axes[0] + len(axes))) or axes[0] == 0:
        return picked
    rank = len(b.out_shape) - len(rest)
    order = [*range(rank, rank + axes[0]), *range(rank), *range(rank + axes[0], rank + len(rest))]
    return op.permute_dims(picked, order)


def arange(b: Build, *arguments: Any) -> Expr:
    """arange(end), arange(start, end), arange(start, end, step); then dtype, layout, ..."""
    bounds = {"start": 0, "step": 1}
    for parameter, value in zip(b.node.target._schema.arguments, arguments, strict=True):
        if parameter.name in ("start", "end", "step"):
            bounds[parameter.name] = value
    if any(isinstance(value, float) for value in bounds.values()):
        raise ModelError("arange is supported for whole numbers")
    positions = b.iota(b.out_shape[0])
    if bounds["step"] != 1:
        positions = b.emit(op.multiply(positions, b.scalar(bounds["step"], "int64")))
    if not isinstance(bounds["start"], int) or bounds["start"]:
        positions = b.emit(op.add(positions, b.scalar(bounds["start"], "int64")))
    return b.cast(positions, b.out_dtype)


def filled(value: float) -> Converter:
    """zeros, ones_like, new_zeros, ...: every argument but the value is in the fake tensor."""

    def convert(b: Build, *_: Any) -> Expr:
        return op.full(b.out_shape, b.scalar(value, b.out_dtype), b.out_dtype)

    return convert


def full(b: Build, _: Any, value: Any, *__: Any) -> Expr:
    if isinstance(value, int | float):
        return op.full(b.out_shape, b.scalar(value, b.out_dtype), b.out_dtype)
    return b.broadcast(b.operand(value, b.out_dtype), b.out_shape)


def new_full(b: Build, x: Any, _: Any, value: Any, *__: Any) -> Expr:
    return full(b, x, value)


def fill(b: Build, x: Any, value: Any) -> Expr:
    return full(b, x, value)


def scalar_tensor(b: Build, value: Any, *_: Any) -> Expr:
    return b.reshape(b.scalar(value, b.out_dtype), b.out_shape)


def triangle(keeps_below: bool) -> Converter:
    """tril, triu: column - row <= diagonal, or >="""

    def convert(b: Build, x: Expr, diagonal: int = 0) -> Expr:
        *_, rows, columns = b.shape(x)
        row = b.reshape(b.iota(rows), [rows, 1])
        offset = b.emit(op.subtract(b.reshape(b.iota(columns), [1, columns]), row))
        limit = b.scalar(diagonal, "int64")
        kept = b.emit((op.less_equal if keeps_below else op.greater_equal)(offset, limit))
        if b.dtype(x) == "bool":
            return op.logical_and(x, kept)
        return op.where(kept, x, b.scalar(0, b.dtype(x)))

    return convert


def difference(
    b: Build, x: Expr, count: int = 1, axis: int = -1, before: Any = None, after: Any = None
) -> Expr:
    """diff: x[1:] - x[:-1], after joining what goes before and after."""
    axis = axis_of(b, x, axis)
    parts = [part for part in (before, x, after) if is_tensor(part)]
    if len(parts) > 1:
        x = b.emit(op.concat([b.cast(part, b.dtype(x)) for part in parts], axis))
    for _ in range(count):
        extent = b.shape(x)[axis]
        later, earlier = b.slice(x, axis, 1, extent), b.slice(x, axis, 0, extent - 1)
        x = b.emit((op.logical_xor if b.dtype(x) == "bool" else op.subtract)(later, earlier))
    return x


RESHAPES = (
    "_unsafe_view", "_reshape_copy", "flatten", "reshape", "squeeze", "unflatten", "unsqueeze",
    "view", "view_as", "reshape_as", "ravel", "squeeze_copy", "unsqueeze_copy", "view_copy",
)  # fmt: skip
ZEROS = ("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty")

CONVERTERS: dict[str, Converter] = {
    **dict.fromkeys(RESHAPES, reshape),
    **dict.fromkeys(ZEROS, filled(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), filled(1)),
    "arange": arange,
    "broadcast_to": expand,
    "cat": concatenate,
    "chunk": chunk,
    "concat": concatenate,
    "diff": difference,
    "embedding": embedding,
    "expand": expand,
    "expand_as": expand,
    "expand_copy": expand,
    "fill": fill,
    "flip": flip,
    "full": full,
    "full_like": fill,
    "gather": gather,
    "index": index,
    "index_select": index_select,
    "narrow": narrow,
    "new_full": new_full,
    "permute": permute,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    "roll": roll,
    "scalar_tensor": scalar_tensor,
    "select.int": select,
    "slice": slice_axis,
    "split": split,
    "split_with_sizes": split,
    "stack": stack,
    "swapaxes": transpose,
    "t": matrix_transpose,
    "transpose": transpose,
    "tril": triangle(True),
    "triu": triangle(False),
    "unbind": unbind,
    "unsafe_chunk": chunk,
    "unsafe_split": split,
}
