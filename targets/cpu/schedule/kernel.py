"""A kernel being written: its scratch buffers and flat views, and the loops that go into it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.tirx import ForKind

from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    coefficient,
    flat_offset,
    is_one,
    loads_in,
    map_loads,
    substitute,
    variables_in,
)
from lbcompiler.targets.cpu.schedule.stages import Axis, Combine, Dimensions, Program, Stage

Body = Callable[[Expr], Any]  # a loop's index -> its statement


def integer(value: int) -> Expr:
    return tirx.const(value, "int64")


def loop(extent: Expr | int, body: Body, kind: ForKind = ForKind.SERIAL, name: str = "i") -> Any:
    """for name in range(extent): body(name); no loop where it runs once."""
    extent = integer(extent) if isinstance(extent, int) else extent
    if is_one(extent):
        return body(integer(0))
    var = tirx.Var(name, "int64")
    return tirx.For(var, integer(0), extent, kind, body(var))


def sequence(statements: Sequence[Any]) -> Any:
    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def product(extents: Sequence[Expr]) -> Expr:
    result: Expr = integer(1)
    for extent in extents:
        result = result * extent
    return result


def static(extent: Expr) -> int | None:
    return int(extent) if isinstance(extent, tirx.IntImm) else None


@dataclass(frozen=True)
class Nest:
    """A stage over flat buffers: out[offset] = value, all offsets linear in as many axes as
    possible.
    """

    name: str
    out: Any
    offset: Expr
    axes: tuple[Axis, ...]
    value: Expr
    dimensions: Dimensions
    reduced: tuple[Axis, ...] = ()
    combine: Combine | None = None
    init: Expr | None = None
    result: Any = None
    finish: Expr | None = None

    @property
    def dtype(self) -> str:
        return str(self.out.dtype)

    @property
    def expressions(self) -> list[Expr]:
        return [self.value] if self.finish is None else [self.value, self.finish]

    def offsets(self) -> list[Expr]:
        """Where it writes, and where each of its loads reads."""
        loads = [load for expr in self.expressions for load in loads_in(expr)]
        return [self.offset, *(load.indices[0] for load in loads)]

    def mapped(self, change: Callable[[Expr], Expr]) -> Nest:
        """With its values and offset rewritten."""
        finish = None if self.finish is None else change(self.finish)
        return replace(self, offset=change(self.offset), value=change(self.value), finish=finish)

    def strides(self, axis: Axis) -> list[Expr | None]:
        return [coefficient(offset, axis.var) for offset in self.offsets()]


@dataclass
class Kernel:
    """Collects what a function declares while its nests are written."""

    program: Program
    _flat: dict[Any, Any] = field(default_factory=dict)
    _declared: list[Any] = field(default_factory=list)
    nests: list[Any] = field(default_factory=list)

    def flat(self, buffer: Any) -> Any:
        """The one-dimensional buffer over the same memory; scratch where it is no parameter."""
        if buffer in self._flat:
            return self._flat[buffer]
        size = product(self.program.dimensions.shape(buffer))
        if buffer in set(self.program.function.params):
            data = tirx.buffer_data(buffer)
            view = tirx.decl_buffer((size,), buffer.dtype, f"{buffer.name}_flat", data=data)
            self._declared.append(tirx.DeclBuffer(view, data=data))
        else:
            view = tirx.decl_buffer((size,), buffer.dtype, buffer.name)
            self._declared.append(tirx.AllocBuffer(view))
        self._flat[buffer] = view
        return view

    def offset(self, buffer: Any, indices: Sequence[Expr], axes: Sequence[Axis]) -> Expr:
        """Where an element of the buffer is in its flat view."""
        shape = self.program.dimensions.shape(buffer)
        return self.program.dimensions.analyzer(axes).simplify(flat_offset(shape, indices))

    def flat_load(self, load: Expr, axes: Sequence[Axis]) -> Expr:
        return self.flat(load.source)[self.offset(load.source, load.indices, axes)]

    def nest(self, stage: Stage) -> Nest:
        """The stage over flat buffers, adjacent axes merged where every access allows."""
        axes = (*stage.axes, *stage.reduced)

        def flattened(load: Expr) -> Expr:
            return self.flat_load(load, axes)

        nest = Nest(
            stage.name,
            self.flat(stage.buffer),
            self.offset(stage.buffer, stage.indices, axes),
            stage.axes,
            map_loads(stage.value, flattened),
            self.program.dimensions,
            stage.reduced,
            stage.combine,
            stage.init,
            stage.result,
            None if stage.finish is None else map_loads(stage.finish, flattened),
        )
        return merge_axes(nest)

    def finish(self) -> Any:
        """The function with its new body."""
        statements = [*self.program.dimensions.bindings(), *self._declared, *self.nests]
        function = self.program.function.with_body(sequence(statements))
        return function.with_attr("tirx.is_scheduled", True)


def merge_axes(nest: Nest) -> Nest:
    """With neighbouring axes made one where every access allows."""
    nest, axes = _merge_group(nest, nest.axes)
    nest, reduced = _merge_group(nest, nest.reduced)
    return replace(nest, axes=axes, reduced=reduced)


def _merge_group(nest: Nest, group: Sequence[Axis]) -> tuple[Nest, tuple[Axis, ...]]:
    axes = list(group)
    for at in reversed(range(len(axes) - 1)):
        merged = _merged(nest, axes[at], axes[at + 1])
        if merged is not None:
            axes[at : at + 2], nest = [merged[0]], merged[1]
    return nest, tuple(axes)


def _merged(nest: Nest, outer: Axis, inner: Axis) -> tuple[Axis, Nest] | None:
    """One axis in place of two neighbours that every access walks through as if they were one."""
    for expr in nest.expressions:
        stripped = map_loads(expr, lambda load: tirx.const(0, load.ty.dtype))
        if {outer.var, inner.var} & variables_in(stripped):
            return None
    analyzer = nest.dimensions.analyzer()
    for offset in nest.offsets():
        a, b = coefficient(offset, outer.var), coefficient(offset, inner.var)
        if a is None or b is None or not analyzer.can_prove_equal(a, b * inner.extent):
            return None
    axis = Axis(
        tirx.Var(f"{outer.var.name}_{inner.var.name}", "int64"), outer.extent * inner.extent
    )
    swap = {outer.var: integer(0), inner.var: axis.var}

    def moved(load: Expr) -> Expr:
        return load.source[analyzer.simplify(substitute(load.indices[0], swap))]

    def changed(expr: Expr) -> Expr:
        return substitute(map_loads(expr, moved), swap)

    return axis, nest.mapped(changed)


def serial_if_small(statement: Any, extents: Sequence[Expr], threshold: int) -> Any:
    """The statement, but on one thread where its box turns out small when it runs.

    Waking the other threads costs some microseconds, as much as ten thousand additions.
    """
    work = product(extents)
    if isinstance(work, tirx.IntImm):
        return statement

    def serial(node: Any) -> Any:
        if node.kind != ForKind.PARALLEL:
            return node
        return tirx.For(node.loop_var, node.min, node.extent, ForKind.SERIAL, node.body)

    one_thread = tvm_ffi.structural_map(statement, (tirx.For, serial))
    return tirx.IfThenElse(work >= integer(threshold), statement, one_thread)


def over(axes: Sequence[Axis], body: Callable[[], Any], kind: ForKind) -> Any:
    """All of `axes` as one loop of that kind around the body, their variables bound inside."""
    if not axes:
        return body()
    if len(axes) == 1:
        return tirx.For(axes[0].var, integer(0), axes[0].extent, kind, body())
    index = tirx.Var("outer", "int64")
    counts, extents = _named([axis.extent for axis in axes])
    bound = unravel(index, axes, extents)
    loops = tirx.For(index, integer(0), product(extents), kind, sequence([*bound, body()]))
    return sequence([*counts, loops])


def _named(extents: Sequence[Expr]) -> tuple[list[Any], list[Expr]]:
    """Statements that give extents names, and the names: a divisor is best a variable."""
    names = [
        e if isinstance(e, tirx.IntImm | tirx.Var) else tirx.Var("count", "int64") for e in extents
    ]
    pairs = zip(names, extents, strict=True)
    return [tirx.Bind(name, extent) for name, extent in pairs if not name.same_as(extent)], names


def unravel(index: Expr, axes: Sequence[Axis], extents: Sequence[Expr]) -> list[Any]:
    """Statements that bind each axis's variable for position `index` of the whole box."""
    bound, rest = [], index
    for axis, extent in zip(reversed(axes[1:]), reversed(extents[1:]), strict=True):
        bound.append(tirx.Bind(axis.var, tirx.truncmod(rest, extent)))
        rest = tirx.truncdiv(rest, extent)
    if axes:
        bound.append(tirx.Bind(axes[0].var, rest))
    return bound
