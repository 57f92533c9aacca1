"""Rows written behind those a state has: state[size - count + i, ..] = rows[.., i, ..].

for row in rows                                    serial: a token's rows are a few hundred bytes
    for index in the other axes, state's order     the innermost is contiguous on both sides
        state[size - count + row, *index] = rows[index in its own order]
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import Expr, kernel, root_block


def append_kernel(shape: Sequence[Expr], axes: Sequence[int], dtype: str) -> Any:
    """A PrimFunc (state, rows) that writes the state in place; `axes[0]` of rows `shape` grows."""
    extents = [_own(extent, axis) for axis, extent in enumerate(shape)]
    size, count = tirx.Var("size", "int64"), tirx.Var("count", "int64")
    extents[axes[0]] = count
    inner = [extents[axis] for axis in axes[1:]]
    with kernel() as builder:
        state = T.arg("state", T.buffer((size, *inner), dtype))
        rows = T.arg("rows", T.buffer(extents, dtype))

        def write(at: list[Expr]) -> None:
            if len(at) == len(axes):
                source = [at[axes.index(axis)] for axis in range(len(axes))]
                T.buffer_store(state, rows[tuple(source)], [size - count + at[0], *at[1:]])
                return
            with T.serial(extents[axes[len(at)]]) as index:
                IRBuilder.name(f"i{len(at)}", index)
                write([*at, index])

        with root_block():
            write([])
    return builder.get()


def _own(extent: Expr, axis: int) -> Expr:
    """A number as it is; a dynamic dimension under the function's own name."""
    return int(extent) if isinstance(extent, tirx.IntImm) else tirx.Var(f"n{axis}", "int64")
