"""A PrimFunc as TE made it, read back as what it computes: a list of stages, each one value over a
box.

TVM's schedule primitives cannot split a symbolic extent without a predicate in the inner loop, and
a predicate stops vectorization. So we do not transform loops: we read what each block computes,
drop the loops, and write new ones. What is not of the form below (scans, sorts, scatters, tuple
reductions) has no program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from tvm import s_tir, sym, tirx
from tvm.ir import Range, TensorLoad

from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    is_one,
    loads_in,
    same,
    substitute,
)

_COMM_REDUCE = 2  # IterVar's type of a reduction axis


class Combine(Enum):
    """How a reduction folds one more value into its result."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"
    PRODUCT = "product"

    def __call__(self, a: Expr, b: Expr) -> Expr:
        if self is Combine.SUM:
            return a + b
        if self is Combine.PRODUCT:
            return a * b
        return tirx.max(a, b) if self is Combine.MAX else tirx.min(a, b)


_NODES = {
    tirx.Add: Combine.SUM,
    tirx.Mul: Combine.PRODUCT,
    tirx.Max: Combine.MAX,
    tirx.Min: Combine.MIN,
}


@dataclass(frozen=True)
class Axis:
    """One loop: a variable that counts from 0 to below `extent`."""

    var: Any
    extent: Expr

    def fresh(self) -> Axis:
        return Axis(tirx.Var(self.var.name, self.var.ty), self.extent)

    @property
    def static(self) -> int | None:
        return int(self.extent) if isinstance(self.extent, tirx.IntImm) else None


@dataclass(frozen=True)
class Stage:
    """buffer[indices] = value, or the `combine` of value over `reduced`, from `init`; for all of
    `axes`.

    Axes of extent one are gone, replaced by zero. `indices` are the axes' variables in their order,
    with zeros at dimensions of extent one. With `finish`, what is stored is that expression of
    `result`, the outcome of the reduction.
    """

    name: str
    buffer: Any
    indices: tuple[Expr, ...]
    axes: tuple[Axis, ...]
    value: Expr
    reduced: tuple[Axis, ...] = ()
    combine: Combine | None = None
    init: Expr | None = None
    result: Any = None
    finish: Expr | None = None

    @property
    def dtype(self) -> str:
        return str(self.buffer.dtype)

    def at(self, indices: Sequence[Expr]) -> Expr:
        """The value at these indices of the buffer (of a stage without reduction)."""
        where = {
            index: given
            for index, given in zip(self.indices, indices, strict=True)
            if isinstance(index, tirx.Var)
        }
        return substitute(self.value, where)


@dataclass(frozen=True)
class Program:
    """A PrimFunc's parameters and stages, in an order in which each reads only what came before."""

    function: Any
    stages: tuple[Stage, ...]
    lanes: int
    shape_variables: tuple[Any, ...] = field(default=())

    @property
    def outputs(self) -> set[Any]:
        """The stages' buffers that are parameters."""
        parameters = set(self.function.params)
        return {stage.buffer for stage in self.stages if stage.buffer in parameters}

    def writer(self, buffer: Any) -> Stage | None:
        return next((stage for stage in self.stages if stage.buffer.same_as(buffer)), None)

    def readers(self, buffer: Any) -> list[Stage]:
        return [
            s for s in self.stages if any(load.source.same_as(buffer) for load in loads_in(s.value))
        ]

    def with_stages(self, stages: Sequence[Stage]) -> Program:
        return replace(self, stages=tuple(stages))


def _dtype_of(buffer: Any) -> str:
    return str(buffer.dtype)


def _reduction(store: Any, init: Any) -> tuple[Combine, Expr] | None:
    """(how, what is added) of `buffer[i] = combine(buffer[i], what)`."""
    combine = _NODES.get(type(store.value))
    if combine is None:
        return None
    for itself, other in ((store.value.a, store.value.b), (store.value.b, store.value.a)):
        if not isinstance(itself, TensorLoad) or not itself.source.same_as(store.buffer):
            continue
        if any(load.source.same_as(store.buffer) for load in loads_in(other)):
            continue
        if all(same(a, b) for a, b in zip(itself.indices, store.indices, strict=True)):
            return combine, other
    return None


def _stage(nest: Any) -> Stage | None:
    extents: dict[Any, Expr] = {}
    while isinstance(nest, tirx.For):
        if (
            nest.kind != tirx.ForKind.SERIAL
            or not isinstance(nest.min, tirx.IntImm)
            or int(nest.min)
        ):
            return None
        extents[nest.loop_var] = nest.extent
        nest = nest.body
    if not isinstance(nest, s_tir.SBlockRealize) or not is_one(nest.predicate):
        return None
    block = nest.block
    if block.alloc_buffers or block.match_buffers or not isinstance(block.body, tirx.BufferStore):
        return None
    store = block.body
    found: list[Axis] = []
    reduced: list[Axis] = []
    zeros: dict[Any, Expr] = {}
    for iterator, value in zip(block.iter_vars, nest.iter_values, strict=True):
        if is_one(iterator.dom.extent):
            zeros[iterator.var] = tirx.const(0, iterator.var.ty.dtype)
            continue
        if not isinstance(value, tirx.Var) or value not in extents:
            return None
        if not same(extents[value], iterator.dom.extent):
            return None
        kind = reduced if int(iterator.iter_type) == _COMM_REDUCE else found
        kind.append(Axis(iterator.var, iterator.dom.extent))
    indices = tuple(substitute(index, zeros) for index in store.indices)
    axes = _in_order(found, indices, store.buffer)
    if axes is None:
        return None
    if block.init is None:
        if reduced or any(load.source.same_as(store.buffer) for load in loads_in(store.value)):
            return None
        value = substitute(store.value, zeros)
        return Stage(block.name_hint, store.buffer, indices, tuple(axes), value)
    folded = _reduction(store, block.init)
    if folded is None or not isinstance(block.init, tirx.BufferStore):
        return None
    combine, value = folded
    value, init = substitute(value, zeros), substitute(block.init.value, zeros)
    return Stage(
        block.name_hint, store.buffer, indices, tuple(axes), value, tuple(reduced), combine, init
    )


def _in_order(axes: list[Axis], indices: Sequence[Expr], buffer: Any) -> list[Axis] | None:
    """The axes in the order of the buffer's dimensions, if each writes one whole dimension."""
    by_variable = {axis.var: axis for axis in axes}
    ordered = []
    for index, extent in zip(indices, buffer.shape, strict=True):
        if isinstance(index, tirx.IntImm) and int(index) == 0 and is_one(extent):
            continue
        if not isinstance(index, tirx.Var) or index not in by_variable:
            return None
        axis = by_variable.pop(index)
        if not same(axis.extent, extent):
            return None
        ordered.append(axis)
    return None if by_variable else ordered


def read_program(function: Any, lanes: int) -> Program | None:
    """What a PrimFunc computes; None where it is not a sequence of such stages."""
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize) or root.block.iter_vars:
        return None
    body = root.block.body
    nests = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    stages = [_stage(nest) for nest in nests]
    if any(stage is None for stage in stages):
        return None
    return Program(function, tuple(s for s in stages if s is not None), lanes)


def analyzer_for(axes: Sequence[Axis]) -> Any:
    """An arithmetic analyzer that knows the ranges of the axes."""
    analyzer = sym.Analyzer()
    for axis in axes:
        analyzer.bind(axis.var, _range(axis))
    return analyzer


def _range(axis: Axis) -> Any:
    return Range.from_min_extent(tirx.const(0, axis.var.ty.dtype), axis.extent)
