"""A reduction whose outputs lie side by side: matmul, convolution, pooling, sums down a column.

A tile of rows x columns accumulates in registers while the reduced axes run; the columns are one or
a few vectors. Where the value is a product, the rows are an axis that one factor has and another
with the columns has not, so that each vector of that other factor serves all of them. A last tile
that does not fit is moved back until it does: it computes some outputs again, to the same bits, and
nothing needs a predicate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx import ForKind

from lbcompiler.targets.cpu.schedule.elementwise import is_large
from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    coefficient,
    is_one,
    loads_in,
    substitute,
    variables_in,
)
from lbcompiler.targets.cpu.schedule.guards import at_corners, steps, unguarded
from lbcompiler.targets.cpu.schedule.kernel import (
    Nest,
    integer,
    loop,
    over,
    product,
    sequence,
    static,
)
from lbcompiler.targets.cpu.schedule.stages import Axis, Combine

_TILES = 8  # of full height in one task
_WINDOW_STRIDE = 4  # of a convolution or pooling; wider than that, neighbours share no cache line
_PACK_FROM = 4  # rows that must share a column before copying it pays
_PARALLEL_FROM = 1 << 15  # multiplications


@dataclass(frozen=True)
class Shape:
    rows: int
    columns: int


def _full(lanes: int) -> Shape:
    """The tile that fills the registers: 32, 16 and 16 of them with 16, 8 and 4 lanes."""
    return {16: Shape(8, 32), 8: Shape(6, 16)}.get(lanes, Shape(4, 8))


def _block_rows(lanes: int) -> int:
    return _full(lanes).rows * _TILES


@dataclass(frozen=True)
class Strip:
    """Neighbouring columns that are computed together."""

    axis: Axis
    first: Expr
    width: int
    lanes: int


def _columns(extent: int | None, lanes: int, full: int) -> list[int]:
    """Widths to try, widest first; with a known extent just the one that wastes least."""
    if extent is None:
        return [full, lanes, 1]
    if extent < lanes:
        return [1 << (extent.bit_length() - 1)]
    widths = [w for w in (full, full + lanes, lanes) if w <= extent]
    return [min(widths, key=lambda w: (-(-extent // w) * w, w != full))]


def _rows(extent: int | None, lanes: int) -> list[int]:
    full = _full(lanes).rows
    if extent is None:
        return [full, 1]
    if extent <= full:
        return [extent]
    return [min(range(full // 2, full + 1), key=lambda r: (-(-extent // r) * (r + 1), -r))]


def _factors(nest: Nest) -> tuple[Expr, Expr] | None:
    if nest.combine is Combine.SUM and isinstance(nest.value, tirx.Mul):
        return nest.value.a, nest.value.b
    return None


def _row_axis(nest: Nest, column: Axis) -> Axis | None:
    """The last axis that a factor with the column has not."""
    factors = _factors(nest)
    if factors is None:
        return None
    used = [variables_in(f) for f in factors if column.var in variables_in(f)]
    others = [axis for axis in nest.axes if axis is not column]
    free = [axis for axis in others if any(axis.var not in variables for variables in used)]
    return free[-1] if free else None


def is_tileable(nest: Nest) -> bool:
    """Whether neighbouring outputs read neighbouring elements, or share what they read."""
    if not nest.reduced or not nest.axes or nest.dtype == "bool":
        return False
    column = nest.axes[-1]
    if not is_one(coefficient(nest.offset, column.var) or integer(0)):
        return False
    if _row_axis(nest, column) is not None:
        return True
    reduced = {axis.var for axis in nest.reduced}
    for load in loads_in(nest.value):
        stride = coefficient(load.indices[0], column.var)
        if stride is None or not variables_in(load.indices[0]) & reduced:
            continue
        if 1 <= (static(stride) or 0) <= _WINDOW_STRIDE:
            return True
    return False


def emit_tiles(nest: Nest, lanes: int) -> Any:
    """The statement that computes a tileable nest."""
    column = nest.axes[-1]
    row = _row_axis(nest, column)
    full = _full(lanes).columns * (1 if row is not None else 2)  # sums enough to hide the latency
    widths = _columns(static(column.extent), lanes, full)
    statement = _emit(nest, row, column, widths[-1], lanes)
    for width in reversed(widths[:-1]):
        wide = _emit(nest, row, column, width, lanes)
        statement = tirx.IfThenElse(column.extent >= integer(width), wide, statement)
    return statement


def _starts(axis: Axis, size: int) -> tuple[Expr, Callable[[Expr], Expr]]:
    """How many pieces of `size`, and where each begins; the last is moved back to end with the
    axis.
    """
    count = tirx.ceildiv(axis.extent, integer(size))
    known = static(axis.extent)
    if size == 1 or (known is not None and known % size == 0):
        return count, lambda t: t * integer(size)
    return count, lambda t: tirx.min(t * integer(size), axis.extent - integer(size))


def _emit(nest: Nest, row: Axis | None, column: Axis, width: int, lanes: int) -> Any:
    batch = [axis.fresh() for axis in nest.axes if axis is not row and axis is not column]
    old = [axis for axis in nest.axes if axis is not row and axis is not column]
    swap = {a.var: b.var for a, b in zip(old, batch, strict=True)}
    nest = nest.mapped(lambda expr: substitute(expr, swap))
    count, column_at = _starts(column, width)
    columns = Axis(tirx.Var("columns", "int64"), count)
    blocks = Axis(
        tirx.Var("rows", "int64"),
        integer(1) if row is None else tirx.ceildiv(row.extent, integer(_block_rows(lanes))),
    )
    strip = Strip(column, column_at(columns.var), width, lanes)

    def task() -> Any:
        if row is None:
            return _tile(nest, None, 1, strip)
        heights = _rows(static(row.extent), lanes)
        statement = _block(nest, row, heights[-1], strip, blocks.var)
        for height in reversed(heights[:-1]):
            tall = _block(nest, row, height, strip, blocks.var)
            statement = tirx.IfThenElse(row.extent >= integer(height), tall, statement)
        return statement

    extents = [axis.extent for axis in (*nest.axes, *nest.reduced)]
    kind = ForKind.PARALLEL if is_large(extents, _PARALLEL_FROM) else ForKind.SERIAL
    axes = [axis for axis in (*batch, blocks, columns) if not is_one(axis.extent)]
    ones = {a.var: integer(0) for a in (blocks, columns) if is_one(a.extent)}
    return over(axes, lambda: substitute(task(), ones), kind)


def _block(nest: Nest, row: Axis, height: int, strip: Strip, block: Expr) -> Any:
    """The tiles of one block of rows, one below the other, over the same columns."""
    tiles, row_at = _starts(row, height)
    size = _block_rows(strip.lanes)
    per_block = -(-size // height)
    packed, panel = _packed(nest, row, strip)
    begin = block * integer(per_block)
    known = static(row.extent)
    if known is not None and known <= size:
        begin, count = integer(0), tiles
    else:  # may be negative where a task is left over, which runs nothing
        count = tirx.min(integer(per_block), tiles - begin)
    inner = loop(
        count,
        lambda t: _tile(packed, row, height, strip, row_at(begin + t)),
        name="tile",
    )
    return inner if panel is None else sequence([*panel, inner])


def _packed(nest: Nest, row: Axis, strip: Strip) -> tuple[Nest, Sequence[Any] | None]:
    """With the right factor's columns copied side by side first, where they are not."""
    factors, column, width = _factors(nest), strip.axis, strip.width
    if factors is None or width == 1 or (static(row.extent) or _PACK_FROM) < _PACK_FROM:
        return nest, None
    if all(column.var in variables_in(factor) for factor in factors):
        return nest, None
    left, right = sorted(factors, key=lambda factor: column.var in variables_in(factor))
    strides = [coefficient(load.indices[0], column.var) for load in loads_in(right)]
    if all(stride is not None and is_one(stride) for stride in strides):
        return nest, None
    panel = tirx.decl_buffer(
        (product([axis.extent for axis in nest.reduced]) * integer(width),),
        str(right.ty.dtype),
        "panel",
    )
    line: Expr = integer(0)
    for axis in nest.reduced:
        line = line * axis.extent + axis.var

    def copy(v: Expr) -> Any:
        value = substitute(right, {column.var: strip.first + v})
        body = tirx.BufferStore(panel, value, [line * integer(width) + v])
        return _reduce(nest, body)

    fill = loop(width, copy, name="v")
    packed = panel[line * integer(width) + (column.var - strip.first)]
    return replace(nest, value=left * packed), [tirx.AllocBuffer(panel), fill]


def _reduce(nest: Nest, body: Any) -> Any:
    """The body in serial loops over the reduced axes, their variables its own."""
    for axis in reversed(nest.reduced):
        fresh = axis.fresh()
        body = substitute(body, {axis.var: fresh.var})
        body = tirx.For(fresh.var, integer(0), axis.extent, ForKind.SERIAL, body)
    return body


def _substituted(values: dict[Any, Expr], expr: Expr) -> Expr:
    return substitute(expr, values)


def _tile(nest: Nest, row: Axis | None, height: int, strip: Strip, top: Expr | None = None) -> Any:
    """The sums of `height` rows from `top`, in the strip's columns, and where they are stored."""
    # a buffer a vector: below a kilobyte it lies on the stack, and LLVM keeps it in a register
    part = min(strip.width, strip.lanes)
    vectors = [(r, v) for r in range(height) for v in range(0, strip.width, part)]
    sums = {at: tirx.decl_buffer((part,), str(nest.value.ty.dtype), "sum") for at in vectors}
    combine, init = nest.combine, nest.init
    assert combine is not None
    assert init is not None

    def at(vector: tuple[int, int], v: Expr) -> dict[Any, Expr]:
        r, begin = vector
        where = {strip.axis.var: strip.first + integer(begin) + v}
        if row is not None and top is not None:
            where[row.var] = top + integer(r)
        return where

    def each(body: Callable[[tuple[int, int], Expr], Any]) -> Any:
        lines = [partial(body, vector) for vector in vectors]
        return sequence([loop(part, line, ForKind.VECTORIZED, "v") for line in lines])

    value, conditions = unguarded(nest.value)

    def accumulate(vector: tuple[int, int], v: Expr) -> Any:
        total = sums[vector]
        return tirx.BufferStore(total, combine(total[v], substitute(value, at(vector, v))), [v])

    def by_row(inside: Callable[[Callable[[Expr], Expr]], Expr]) -> Any:
        rows = []
        for r in range(height):
            lines = [partial(accumulate, (r, begin)) for begin in range(0, strip.width, part)]
            body = sequence([loop(part, line, ForKind.VECTORIZED, "v") for line in lines])
            here = partial(_substituted, at((r, 0), integer(0)))
            rows.append(tirx.IfThenElse(inside(here), body, None))
        return sequence(rows)

    ends = [(axis.var, integer(0), axis.extent - integer(1)) for axis in nest.reduced]
    if row is not None and top is not None:
        ends.append((row.var, top, top + integer(height - 1)))

    def store(vector: tuple[int, int], v: Expr) -> Any:
        where = at(vector, v)
        result: Expr = sums[vector][v]
        if nest.finish is not None:
            result = substitute(nest.finish, {**where, nest.result: result})
        return tirx.BufferStore(nest.out, result, [substitute(nest.offset, where)])

    allocations = [tirx.AllocBuffer(total) for total in sums.values()]
    clear = each(lambda vector, v: tirx.BufferStore(sums[vector], init, [v]))
    reduced = steps(
        conditions,
        row,
        lambda condition: at_corners(condition, ends),
        each(accumulate),
        by_row,
        partial(_reduce, nest),
    )
    return sequence([*allocations, clear, reduced, each(store)])
