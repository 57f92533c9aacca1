"""Rows written behind those of a state, in place: state[size - count + i, ..] = rows[.., i, ..]."""

from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.legalization import Builder, integers
from lbcompiler.targets.cuda.intrinsics import OPAQUE

Expr = Any


def legalize_append(builder: Builder, call: Any) -> Any:
    """A piece of the state's memory under its new shape, its last rows written by a kernel."""
    state, rows, shape = call.args
    kernel = append_kernel(rows.ty.shape.values, integers(call.attrs["axes"]), rows.ty.dtype)
    append = builder.add_func(kernel, "append")
    grown = builder.emit(relax.op.memory.view(state, shape))
    return relax.op.call_tir_inplace(append, [grown, rows], [0], call.ty)


def append_kernel(shape: Sequence[Expr], axes: Sequence[int], dtype: Any) -> Any:
    """A PrimFunc (state, rows) that writes the state in place, to be scheduled; `axes[0]` of rows
    `shape` grows, and the state has its axes in the order of `axes`.
    """
    extents = [_own(extent, axis) for axis, extent in enumerate(shape)]
    size, count = tirx.Var("size", "int64"), tirx.Var("count", "int64")
    extents[axes[0]] = count
    ordered = [extents[axis] for axis in axes]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("append")
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        state = T.arg("state", T.buffer((size, *ordered[1:]), dtype))
        rows = T.arg("rows", T.buffer(extents, dtype))
        with T.sblock("root"):
            T.reads([])
            T.writes([])
            with T.grid(*ordered) as loops, T.sblock("append"):
                at = [
                    T.axis.spatial(extent, loop)
                    for extent, loop in zip(ordered, loops, strict=True)
                ]
                source = [at[axes.index(axis)] for axis in range(len(axes))]
                target = [size - count + at[0], *at[1:]]
                T.reads([rows[tuple(source)]])
                T.writes([state[tuple(target)]])
                T.buffer_store(state, rows[tuple(source)], target)
    return builder.get()


def _own(extent: Expr, axis: int) -> Expr:
    """A number as it is; a dynamic dimension under the function's own name."""
    return int(extent) if isinstance(extent, tirx.IntImm) else tirx.Var(f"n{axis}", "int64")
