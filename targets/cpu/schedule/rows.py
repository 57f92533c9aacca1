"""Softmax, norms, means: all stages of a function row by row, while the row is in the L1 cache.

Every reduction runs over a row, and its result is a scalar of that row. Rows run in parallel;
within a row each stage is one loop in vectors; a costly stage with several readers (softmax's exp)
keeps its row in scratch memory, every other one is computed where it is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx import ForKind

from lbcompiler.targets.cpu.schedule.elementwise import PARALLEL_FROM, is_large, lanes_of, row
from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    coefficient,
    is_one,
    loads_in,
    map_loads,
    provably_equal,
    substitute,
)
from lbcompiler.targets.cpu.schedule.inline import inline_stages, is_costly, is_trivial
from lbcompiler.targets.cpu.schedule.kernel import (
    Kernel,
    Nest,
    integer,
    loop,
    merge_axes,
    over,
    product,
    sequence,
    serial_if_small,
    static,
    unravel,
)
from lbcompiler.targets.cpu.schedule.stages import Axis, Program, Stage
from lbcompiler.targets.cpu.schedule.tile import is_tileable

_ROWS_A_TASK = 8


def _keep(stage: Stage, readers: Sequence[Stage]) -> bool:
    """Whether a stage gets memory (a row of it) or a name (one number a row)."""
    if is_trivial(stage.value):
        return False
    wider = any(len(r.axes) + len(r.reduced) > len(stage.axes) for r in readers)
    return wider or (is_costly(stage.value) and len(readers) > 1)


def _row_axes(stage: Stage, rows: Sequence[Axis], known: dict[Any, list[int | None]]) -> Any:
    """{axis of the stage: number of the row axis it is}; None where the stage goes across rows."""
    found: dict[Any, int] = {}
    own = {axis.var: axis for axis in stage.axes}
    internal = [load for load in loads_in(stage.value) if load.source in known]
    if not internal:
        if len(stage.axes) < len(rows):
            return None
        found = {axis.var: number for number, axis in enumerate(stage.axes[: len(rows)])}
    for load in internal:
        for index, number in zip(load.indices, known[load.source], strict=True):
            if number is None:
                continue
            if not isinstance(index, tirx.Var) or index not in own:
                return None
            if found.setdefault(index, number) != number:
                return None
    if sorted(found.values()) != list(range(len(rows))):
        return None
    if not all(provably_equal(own[var].extent, rows[n].extent) for var, n in found.items()):
        return None
    return found


def _aligned(program: Program) -> tuple[list[Axis], list[Stage]] | None:
    """The row axes, and the stages with just these variables for them and their columns left as
    axes.
    """
    first = next((stage for stage in program.stages if stage.reduced), None)
    if first is None:
        return None
    rows = [axis.fresh() for axis in first.axes]
    known: dict[Any, list[int | None]] = {}
    aligned: list[Stage] = []
    for stage in program.stages:
        found = _row_axes(stage, rows, known)
        if found is None:
            return None
        columns = tuple(axis for axis in stage.axes if axis.var not in found)
        if stage.reduced and columns:
            return None
        swap = {var: rows[number].var for var, number in found.items()}
        known[stage.buffer] = [
            found.get(index) if isinstance(index, tirx.Var) else None for index in stage.indices
        ]
        aligned.append(
            replace(
                stage,
                axes=columns,
                value=substitute(stage.value, swap),
                indices=tuple(substitute(index, swap) for index in stage.indices),
            )
        )
    return rows, aligned


def _runs_along_memory(stage: Stage, program: Program) -> bool:
    """Whether the reduced axis is some operand's fast one, and neighbouring rows share nothing."""
    nest = Kernel(program).nest(stage)
    last = nest.reduced[-1]
    strides = [coefficient(load.indices[0], last.var) for load in loads_in(nest.value)]
    return not is_tileable(nest) and any(s is not None and is_one(s) for s in strides)


def schedule_rows(program: Program) -> Any:
    """The PrimFunc, or None where not all stages share rows."""
    program = inline_stages(program, _keep)
    if not all(_runs_along_memory(stage, program) for stage in program.stages if stage.reduced):
        return None
    found = _aligned(program)
    if found is None:
        return None
    rows, stages = found
    kernel = Kernel(program)
    extents = [axis.extent for axis in rows]
    work = extents + [a.extent for s in stages if s.reduced for a in s.reduced][:2]
    kind = ForKind.PARALLEL if is_large(work) else ForKind.SERIAL
    scratch, body = _row_body(kernel, program, stages)
    if not scratch:
        statement = over(rows, body, kind)
        kernel.nests.append(serial_if_small(statement, work, PARALLEL_FROM))
        return kernel.finish()
    total = product(extents)
    size = integer(_ROWS_A_TASK)

    def task(t: Expr) -> Any:
        def one(i: Expr) -> Any:
            return sequence([*unravel(t * size + i, rows, extents), body()])

        count = tirx.min(size, total - t * size)
        return sequence([*(tirx.AllocBuffer(b) for b in scratch), loop(count, one, name="row")])

    statement = loop(tirx.ceildiv(total, size), task, kind, "rows")
    kernel.nests.append(serial_if_small(statement, work, PARALLEL_FROM))
    return kernel.finish()


def _row_body(
    kernel: Kernel, program: Program, stages: Sequence[Stage]
) -> tuple[list[Any], Callable[[], Any]]:
    """The scratch rows that are needed, and what makes the statement of one row."""
    outputs = program.outputs
    scratch: dict[Any, tuple[Any, Stage]] = {}
    numbers: dict[Any, Any] = {}
    statements: list[Any] = []

    def rewritten(load: Expr) -> Expr:
        if load.source in numbers:
            return numbers[load.source]
        if load.source in scratch:
            buffer, stage = scratch[load.source]
            return buffer[_column_offset(program, stage, load.indices)]
        return kernel.flat_load(load, ())

    for stage in stages:
        value = map_loads(stage.value, rewritten)
        offset = kernel.offset(stage.buffer, stage.indices, stage.axes)
        is_output = stage.buffer in outputs
        if not stage.reduced and not stage.axes and not is_output:
            numbers[stage.buffer] = tirx.Var(stage.buffer.name, value.ty)
            statements.append(tirx.Bind(numbers[stage.buffer], value))
            continue
        if stage.reduced:
            nest = merge_axes(
                Nest(
                    stage.name,
                    None,
                    offset,
                    (),
                    value,
                    program.dimensions,
                    stage.reduced,
                    stage.combine,
                    stage.init,
                )
            )
            fold, result = fold_row(nest, program.lanes)
            statements.extend(fold)
            numbers[stage.buffer] = tirx.Var(stage.buffer.name, value.ty)
            statements.append(tirx.Bind(numbers[stage.buffer], result))
            if is_output:
                flat = kernel.flat(stage.buffer)
                statements.append(tirx.BufferStore(flat, numbers[stage.buffer], [offset]))
            continue
        if is_output:
            out = kernel.flat(stage.buffer)
        else:
            size = product([axis.extent for axis in stage.axes])
            out = tirx.decl_buffer((size,), stage.dtype, f"{stage.buffer.name}_row")
            scratch[stage.buffer] = (out, stage)
            offset = _column_offset(program, stage, stage.indices)
        nest = merge_axes(Nest(stage.name, out, offset, stage.axes, value, program.dimensions))
        statements.append(_columns(nest, program.lanes))
    return [buffer for buffer, _ in scratch.values()], lambda: sequence(statements)


def _column_offset(program: Program, stage: Stage, indices: Sequence[Expr]) -> Expr:
    """The position within the row of an element of the stage's buffer."""
    columns = {axis.var for axis in stage.axes}
    offset: Expr = integer(0)
    shape = program.dimensions.shape(stage.buffer)
    for own, extent, index in zip(stage.indices, shape, indices, strict=True):
        if isinstance(own, tirx.Var) and own in columns:
            offset = offset * extent + index
    return offset


def _columns(nest: Nest, lanes: int) -> Any:
    if not nest.axes:
        return tirx.BufferStore(nest.out, nest.value, [nest.offset])
    *outer, axis = nest.axes

    def store(j: Expr) -> Any:
        where = {axis.var: j}
        return tirx.BufferStore(
            nest.out, substitute(nest.value, where), [substitute(nest.offset, where)]
        )

    body = row(nest, axis, integer(0), axis.extent, lanes_of(nest, lanes), store)
    for other in reversed(outer):
        body = tirx.For(other.var, integer(0), other.extent, ForKind.SERIAL, body)
    return body


def fold_row(nest: Nest, lanes: int) -> tuple[list[Any], Expr]:
    """Statements that reduce a row into a vector and that into one number, and the number."""
    combine = nest.combine
    assert combine is not None
    *outer, axis = nest.reduced
    lanes = lanes_of(replace(nest, out=tirx.decl_buffer((1,), nest.value.ty.dtype)), lanes)
    known = static(axis.extent)
    if known is not None and known < lanes:
        lanes = 1
    total = tirx.decl_buffer((lanes,), nest.value.ty.dtype, "total")

    def fold(slot: Expr, j: Expr) -> Any:
        value = combine(total[slot], substitute(nest.value, {axis.var: j}))
        return tirx.BufferStore(total, value, [slot])

    def vector(t: Expr) -> Any:
        at = t * integer(lanes)
        return loop(lanes, lambda v: fold(v, at + v), ForKind.VECTORIZED, "v")

    whole = tirx.floordiv(axis.extent, integer(lanes))
    parts = [loop(whole, vector, name="t")]
    if known is None or known % lanes:
        done = whole * integer(lanes)
        parts.append(loop(axis.extent - done, lambda j: fold(integer(0), done + j), name="j"))
    body = sequence(parts)
    for other in reversed(outer):
        body = tirx.For(other.var, integer(0), other.extent, ForKind.SERIAL, body)

    def clear(v: Expr) -> Any:
        return tirx.BufferStore(total, nest.init, [v])

    statements = [tirx.AllocBuffer(total), loop(lanes, clear, ForKind.VECTORIZED, "v"), body]
    half = lanes // 2
    while half:

        def halve(v: Expr, half: int = half) -> Any:
            return tirx.BufferStore(total, combine(total[v], total[v + integer(half)]), [v])

        statements.append(loop(half, halve, ForKind.VECTORIZED, "v"))
        half //= 2
    return statements, total[integer(0)]
