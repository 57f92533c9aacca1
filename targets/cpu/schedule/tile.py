"""A reduction whose outputs lie side by side: matmul, convolution, pooling, sums down a column.

A tile of rows x columns accumulates in registers while the reduced axes run; the columns are one or
a few vectors. Where the value is a product, the rows are an axis that only the left factor has, so
that each vector of the right factor serves all of them. A last tile that does not fit is moved back
until it does: it computes some outputs again, to the same bits, and nothing needs a predicate.
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


def _columns(extent: int | None, lanes: int) -> list[int]:
    """Widths to try, widest first; with a known extent just the one that wastes least."""
    full = _full(lanes).columns
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
    """The last axis that only the factor without the column has."""
    factors = _factors(nest)
    if factors is None:
        return None
    with_column = [factor for factor in factors if column.var in variables_in(factor)]
    if len(with_column) != 1:
        return None
    used = variables_in(with_column[0])
    free = [axis for axis in nest.axes if axis.var not in used and axis is not column]
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
    widths = _columns(static(column.extent), lanes)
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
    first = column_at(columns.var)

    def task() -> Any:
        if row is None:
            return _tile(nest, None, 1, column, first, width)
        heights = _rows(static(row.extent), lanes)
        size = _block_rows(lanes)
        statement = _block(nest, row, heights[-1], column, first, width, blocks.var, size)
        for height in reversed(heights[:-1]):
            tall = _block(nest, row, height, column, first, width, blocks.var, size)
            statement = tirx.IfThenElse(row.extent >= integer(height), tall, statement)
        return statement

    extents = [axis.extent for axis in (*nest.axes, *nest.reduced)]
    kind = ForKind.PARALLEL if is_large(extents, _PARALLEL_FROM) else ForKind.SERIAL
    axes = [axis for axis in (*batch, blocks, columns) if not is_one(axis.extent)]
    ones = {a.var: integer(0) for a in (blocks, columns) if is_one(a.extent)}
    return over(axes, lambda: substitute(task(), ones), kind)


def _block(
    nest: Nest,
    row: Axis,
    height: int,
    column: Axis,
    first: Expr,
    width: int,
    block: Expr,
    size: int,
) -> Any:
    """The tiles of one block of rows, one below the other, over the same columns."""
    tiles, row_at = _starts(row, height)
    per_block = -(-size // height)
    packed, panel = _packed(nest, row, column, first, width)
    begin = block * integer(per_block)
    known = static(row.extent)
    if known is not None and known <= size:
        begin, count = integer(0), tiles
    else:  # may be negative where a task is left over, which runs nothing
        count = tirx.min(integer(per_block), tiles - begin)
    inner = loop(
        count,
        lambda t: _tile(packed, row, height, column, first, width, row_at(begin + t)),
        name="tile",
    )
    return inner if panel is None else sequence([*panel, inner])


def _packed(
    nest: Nest, row: Axis, column: Axis, first: Expr, width: int
) -> tuple[Nest, Sequence[Any] | None]:
    """With the right factor's columns copied side by side first, where they are not."""
    factors = _factors(nest)
    if factors is None or width == 1 or (static(row.extent) or _PACK_FROM) < _PACK_FROM:
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
        value = substitute(right, {column.var: first + v})
        body = tirx.BufferStore(panel, value, [line * integer(width) + v])
        return _reduce(nest, body)

    fill = loop(width, copy, name="v")
    packed = panel[line * integer(width) + (column.var - first)]
    return replace(nest, value=left * packed), [tirx.AllocBuffer(panel), fill]


def _reduce(nest: Nest, body: Any) -> Any:
    """The body in serial loops over the reduced axes, their variables its own."""
    for axis in reversed(nest.reduced):
        fresh = axis.fresh()
        body = substitute(body, {axis.var: fresh.var})
        body = tirx.For(fresh.var, integer(0), axis.extent, ForKind.SERIAL, body)
    return body


def _tile(
    nest: Nest,
    row: Axis | None,
    height: int,
    column: Axis,
    first: Expr,
    width: int,
    top: Expr | None = None,
) -> Any:
    # a buffer a row: what is smaller than a kilobyte lies on the stack, where LLVM finds registers
    sums = [tirx.decl_buffer((width,), str(nest.value.ty.dtype), "sum") for _ in range(height)]
    combine, init = nest.combine, nest.init
    assert combine is not None
    assert init is not None

    def at(r: int, v: Expr) -> dict[Any, Expr]:
        where = {column.var: first + v}
        if row is not None and top is not None:
            where[row.var] = top + integer(r)
        return where

    def each(body: Callable[[int, Expr], Any]) -> Any:
        rows = [partial(body, r) for r in range(height)]
        return sequence([loop(width, line, ForKind.VECTORIZED, "v") for line in rows])

    def accumulate(r: int, v: Expr) -> Any:
        value = combine(sums[r][v], substitute(nest.value, at(r, v)))
        return tirx.BufferStore(sums[r], value, [v])

    def store(r: int, v: Expr) -> Any:
        result: Expr = sums[r][v]
        if nest.finish is not None:
            result = substitute(nest.finish, {**at(r, v), nest.result: result})
        return tirx.BufferStore(nest.out, result, [substitute(nest.offset, at(r, v))])

    allocations = [tirx.AllocBuffer(total) for total in sums]
    clear = each(lambda r, v: tirx.BufferStore(sums[r], init, [v]))
    return sequence([*allocations, clear, _reduce(nest, each(accumulate)), each(store)])
