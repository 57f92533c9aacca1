"""A PrimFunc as TE made it, read back as what it computes: a list of stages, each one value over a
box.

TVM's schedule primitives cannot split a symbolic extent without a predicate in the inner loop, and
a predicate stops vectorization. So we do not transform loops: we read what each block computes,
drop the loops, and write new ones. What is not of the form below (scans, sorts, scatters, tuple
reductions) has no program.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from tvm import s_tir, sym, tirx
from tvm.ir import Range, TensorLoad

from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    is_one,
    is_zero,
    loads_in,
    provably_equal,
    same,
    substitute,
    variables_in,
)

_LARGE = tirx.const(1 << 40, "int64")
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

    def fresh(self) -> Stage:
        """The same with axes of its own."""
        axes = tuple(axis.fresh() for axis in self.axes)
        reduced = tuple(axis.fresh() for axis in self.reduced)
        old, new = (*self.axes, *self.reduced), (*axes, *reduced)
        swap = {a.var: b.var for a, b in zip(old, new, strict=True)}
        return replace(
            self,
            indices=tuple(substitute(index, swap) for index in self.indices),
            axes=axes,
            reduced=reduced,
            value=substitute(self.value, swap),
        )

    def at(self, indices: Sequence[Expr]) -> Expr:
        """The value at these indices of the buffer (of a stage without reduction)."""
        where = {
            index: given
            for index, given in zip(self.indices, indices, strict=True)
            if isinstance(index, tirx.Var)
        }
        return substitute(self.value, where)


class Dimensions:
    """One name for each extent that is an expression, such as (h - 1) // 2 + 1.

    Strides are products of extents: written out, an index of a few dimensions grows without bound,
    most of all where a division is lowered to several operations.
    """

    def __init__(self, variables: Iterable[Any] = ()) -> None:
        self._named: list[tuple[Expr, Any]] = []
        self._shapes: dict[Any, list[Expr]] = {}
        self._least: dict[Any, int] = dict.fromkeys(variables, 1)

    def __call__(self, extent: Expr) -> Expr:
        extent = self.analyzer().simplify(extent)
        if isinstance(extent, tirx.IntImm | tirx.Var):
            return extent
        for known, name in self._named:
            if provably_equal(known, extent):
                return name
        name = tirx.Var(f"n{len(self._named)}", extent.ty)
        least = self.analyzer().const_int_bound(extent).min_value
        self._least[name] = max(0, int(least))
        self._named.append((extent, name))
        return name

    def expanded(self, expr: Expr) -> Expr:
        """The expression without the names, for comparisons between extents."""
        return substitute(expr, {name: extent for extent, name in self._named})

    def analyzer(self, axes: Sequence[Axis] = ()) -> Any:
        """An arithmetic analyzer that knows that extents are positive, and the axes' ranges."""
        analyzer = sym.Analyzer()
        for name, least in self._least.items():
            analyzer.bind(name, Range.from_min_extent(tirx.const(least, name.ty.dtype), _LARGE))
        for axis in axes:
            if axis.var not in self._least:
                zero = tirx.const(0, axis.var.ty.dtype)
                analyzer.bind(axis.var, Range.from_min_extent(zero, axis.extent))
        return analyzer

    def shape(self, buffer: Any) -> list[Expr]:
        """The buffer's shape in names."""
        if buffer not in self._shapes:
            self._shapes[buffer] = [self(extent) for extent in buffer.shape]
        return self._shapes[buffer]

    def bindings(self) -> list[Any]:
        """What gives the names their values, for the head of the function."""
        return [tirx.Bind(name, extent) for extent, name in self._named]


@dataclass(frozen=True)
class Program:
    """A PrimFunc's parameters and stages, in an order in which each reads only what came before."""

    function: Any
    stages: tuple[Stage, ...]
    lanes: int
    dimensions: Dimensions = field(default_factory=Dimensions)

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


def _reduction(store: Any) -> tuple[Combine, Expr] | None:
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


def _stages(nest: Any, dimensions: Dimensions) -> list[Stage] | None:
    """The stage of a loop nest around one block, or one for each part of a reduction of tuples."""
    extents: dict[Any, Expr] = {}
    while isinstance(nest, tirx.For):
        if nest.kind != tirx.ForKind.SERIAL or not is_zero(nest.min):
            return None
        extents[nest.loop_var] = nest.extent
        nest = nest.body
    if not isinstance(nest, s_tir.SBlockRealize) or not is_one(nest.predicate):
        return None
    block = nest.block
    axes: list[Axis] = []
    reduced: list[Axis] = []
    zeros: dict[Any, Expr] = {}
    for iterator, value in zip(block.iter_vars, nest.iter_values, strict=True):
        if is_one(iterator.dom.extent):
            zeros[iterator.var] = tirx.const(0, iterator.var.ty.dtype)
            continue
        if not isinstance(value, tirx.Var) or value not in extents:
            return None
        extent = dimensions(iterator.dom.extent)
        if not same(dimensions(extents[value]), extent):
            return None
        kind = reduced if int(iterator.iter_type) == _COMM_REDUCE else axes
        kind.append(Axis(iterator.var, extent))
    stores, inits = _stores(block.body), _stores(block.init)
    if block.alloc_buffers or block.match_buffers or not stores or inits is None:
        return None
    if inits and len(inits) != len(stores):
        return None
    found: list[Stage] = []
    for number, store in enumerate(stores):
        init = inits[number] if inits else None
        stage = _stage(block.name_hint, store, init, axes, reduced, zeros, dimensions)
        own = {other.buffer for other in stores}
        if stage is None or any(load.source in own for load in loads_in(stage.value)):
            return None
        found.append(stage if not found else stage.fresh())
    return found


def _stores(body: Any) -> list[Any] | None:
    """The buffer stores of a block's body, with the names bound before them written out."""
    if body is None:
        return []
    names: dict[Any, Expr] = {}
    stores = []
    for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        if isinstance(statement, tirx.Bind):
            names[statement.var] = substitute(statement.value, names)
        elif isinstance(statement, tirx.BufferStore):
            value = substitute(statement.value, names)
            stores.append(tirx.BufferStore(statement.buffer, value, statement.indices))
        else:
            return None
    return stores


def _stage(
    name: str,
    store: Any,
    init: Any,
    axes: list[Axis],
    reduced: list[Axis],
    zeros: dict[Any, Expr],
    dimensions: Dimensions,
) -> Stage | None:
    indices = tuple(substitute(index, zeros) for index in store.indices)
    ordered = _in_order(axes, indices, dimensions.shape(store.buffer))
    if ordered is None:
        return None
    if init is None:
        value = substitute(store.value, zeros)
        return None if reduced else Stage(name, store.buffer, indices, tuple(ordered), value)
    folded = _reduction(store)
    if folded is None:
        return None
    combine, value = folded
    value, start = substitute(value, zeros), substitute(init.value, zeros)
    return Stage(name, store.buffer, indices, tuple(ordered), value, tuple(reduced), combine, start)


def _in_order(
    axes: list[Axis], indices: Sequence[Expr], shape: Sequence[Expr]
) -> list[Axis] | None:
    """The axes in the order of the buffer's dimensions, if each writes one whole dimension."""
    by_variable = {axis.var: axis for axis in axes}
    ordered = []
    for index, extent in zip(indices, shape, strict=True):
        if isinstance(index, tirx.IntImm) and int(index) == 0 and is_one(extent):
            continue
        if not isinstance(index, tirx.Var) or index not in by_variable:
            return None
        axis = by_variable.pop(index)
        if not same(axis.extent, extent):
            return None
        ordered.append(axis)
    return None if by_variable else ordered


def _shape(parameter: Any) -> list[Expr]:
    return list(parameter.shape) if tirx.is_buffer_var(parameter) else []


def read_program(function: Any, lanes: int) -> Program | None:
    """What a PrimFunc computes; None where it is not a sequence of such stages."""
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize) or root.block.iter_vars:
        return None
    body = root.block.body
    nests = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    shapes = [extent for p in function.params for extent in _shape(p)]
    variables = {var for extent in shapes for var in variables_in(extent)}
    dimensions = Dimensions(variables)
    stages: list[Stage] = []
    for nest in nests:
        found = _stages(nest, dimensions)
        if found is None:
            return None
        stages.extend(found)
    return Program(function, tuple(stages), lanes, dimensions)
