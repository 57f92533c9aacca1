"""`permute_dims` as an algebra: two make one, one that undoes the other is none, and one that moves
only dimensions of one element is a reshape, which runs no code.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from lbcompiler.ir.constants import Constant
from lbcompiler.ir.rewrite import Scope

PERMUTE, RESHAPE = (tvm.ir.Op.get(f"relax.{name}") for name in ("permute_dims", "reshape"))
ANALYZER = tvm.sym.Analyzer()
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def axes_of(call: Any) -> tuple[int, ...]:
    """The axes of a `permute_dims`, counted from the front; without any it reverses them."""
    rank = len(call.args[0].ty.shape.values)
    if call.attrs.axes is None:
        return tuple(reversed(range(rank)))
    return tuple(int(axis) % rank for axis in call.attrs.axes)


def permuted(x: Any, axes: Sequence[int], scope: Scope) -> Any:
    """x with its dimensions in the order of `axes`, by as little code as possible: an expression
    to emit.
    """
    inner = scope.call_to(x, PERMUTE)
    if inner is not None:
        return permuted(inner.args[0], [axes_of(inner)[axis] for axis in axes], scope)
    if isinstance(x, Constant):
        return relax.const(np.ascontiguousarray(x.value.numpy().transpose(axes)))
    if list(axes) == list(range(len(axes))):
        return x
    shape = list(x.ty.shape.values)
    moved = [axis for axis in axes if not _is_one(shape[axis])]
    if moved == sorted(moved):
        return _reshaped(x, [shape[axis] for axis in axes], scope)
    return relax.op.permute_dims(x, list(axes))


def _reshaped(x: Any, shape: Sequence[Any], scope: Scope) -> Any:
    """A reshape, or what it would undo."""
    before = scope.call_to(x, RESHAPE)
    if before is not None and has_shape(before.args[0], shape):
        return before.args[0]
    return relax.op.reshape(x, shape)


def has_shape(x: Any, shape: Sequence[Any]) -> bool:
    """Whether x has this shape, provably."""
    own = x.ty.shape.values
    return len(own) == len(shape) and all(map(ANALYZER.can_prove_equal, own, shape))


def _is_one(extent: Any) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == 1
