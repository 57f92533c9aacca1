"""out[i..., j] = value(i..., j): rows in parallel, j in vectors; tiles where j is no operand's fast
axis.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from tvm import tirx
from tvm.ir import Range
from tvm.tirx import ForKind

from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    calls_in,
    coefficient,
    is_one,
    is_zero,
    loads_in,
    op_name,
    substitute,
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
from lbcompiler.targets.cpu.schedule.stages import Axis

PARALLEL_FROM = 8192  # elements; below it waking the other threads costs more than it saves
_CHUNK = 4096  # elements one task takes of a long row
_TILE = 16

Store = Callable[[Expr], Any]  # j -> the statement that stores element j


def is_large(extents: list[Expr], threshold: int = PARALLEL_FROM) -> bool:
    """Whether a box is worth several threads; a dynamic extent counts as large."""
    total = 1
    for extent in extents:
        known = static(extent)
        if known is None:
            return True
        total *= known
    return total >= threshold


def _is_bool(nest: Nest) -> bool:
    """Whether it touches booleans, whose vectors TVM stores bit-packed."""
    return nest.dtype == "bool" or any(
        str(load.ty.dtype) == "bool" for load in loads_in(nest.value)
    )


def lanes_of(nest: Nest, lanes: int) -> int:
    """Elements in a vector register at the width of what is stored."""
    if _is_bool(nest):
        return 1
    return max(1, lanes * 4 // max(4, _bytes(nest)))


def _bytes(nest: Nest) -> int:
    names = [nest.dtype, *(str(load.ty.dtype) for load in loads_in(nest.value))]
    return max(8 if name.endswith("64") else 4 for name in names)


def row(nest: Nest, axis: Axis, low: Expr, count: Expr, lanes: int, store: Store) -> Any:
    """Elements [low, low + count) of a row: whole vectors, then one by one."""
    known = static(count)
    if lanes == 1 or (known is not None and known < lanes):
        width = known if known in (2, 4, 8) and lanes > 1 else None
        kind = ForKind.VECTORIZED if width else ForKind.SERIAL
        return loop(count, lambda j: store(low + j), kind, "j")
    whole = tirx.floordiv(count, integer(lanes)) if known is None else integer(known // lanes)

    def vector(t: Expr) -> Any:
        at = low + t * integer(lanes)
        return loop(lanes, lambda v: store(at + v), ForKind.VECTORIZED, "v")

    main = loop(whole, vector, name="t")
    if known is not None and known % lanes == 0:
        return main
    done = whole * integer(lanes)
    rest = count - done if known is None else integer(known % lanes)
    return sequence([main, loop(rest, lambda j: store(low + done + j), name="j")])


def thresholds(nest: Nest, axis: Axis) -> list[Expr]:
    """Values of the axis at which a branch of the value may change."""
    found: list[Expr] = []
    for call in calls_in(nest.value):
        if op_name(call) == "if_then_else":
            _cuts(nest, call.args[0], axis, found)
    return found


def _cuts(nest: Nest, condition: Expr, axis: Axis, found: list[Expr]) -> None:
    if isinstance(condition, tirx.And | tirx.Or):
        _cuts(nest, condition.a, axis, found)
        _cuts(nest, condition.b, axis, found)
        return
    if isinstance(condition, tirx.Not):
        _cuts(nest, condition.a, axis, found)
        return
    if not isinstance(condition, tirx.LT | tirx.LE | tirx.GT | tirx.GE):
        return
    difference = condition.a - condition.b  # changes sign at the cut
    slope = coefficient(difference, axis.var)
    if slope is None or static(slope) not in (1, -1):
        return
    rest = nest.dimensions.analyzer().simplify(substitute(difference, {axis.var: integer(0)}))
    if loads_in(rest):
        return
    cut = rest * integer(-1) if static(slope) == 1 else rest
    strict = isinstance(condition, tirx.LT | tirx.GE) == (static(slope) == 1)
    found.append(cut if strict else cut + integer(1))


def _segments(nest: Nest, axis: Axis) -> list[tuple[Expr, Expr]]:
    """The axis cut where branches change, as (low, count): inside each, no branch depends on it."""
    analyzer = nest.dimensions.analyzer()
    cuts: list[Expr] = []
    extent = nest.dimensions.expanded(axis.extent)
    for cut in thresholds(nest, axis):
        cut = nest.dimensions.expanded(cut)
        cut = analyzer.simplify(tirx.max(integer(0), tirx.min(cut, extent)))
        if not any(analyzer.can_prove_equal(cut, known) for known in cuts):
            cuts.append(cut)
    if not cuts or len(cuts) > 3:
        return [(integer(0), axis.extent)]
    if all(static(cut) is not None for cut in cuts):
        cuts.sort(key=lambda cut: int(static(cut) or 0))
    edges: list[Expr] = [integer(0)]
    for cut in cuts:
        edges.append(analyzer.simplify(tirx.max(edges[-1], cut)))
    edges.append(extent)
    spans = [(low, analyzer.simplify(high - low)) for low, high in pairwise(edges)]
    return [(low, count) for low, count in spans if not is_zero(count)]


def _in_segment(nest: Nest, axis: Axis, low: Expr, count: Expr) -> Expr:
    """The value simplified under low <= axis < low + count."""
    analyzer = nest.dimensions.analyzer(tuple(a for a in nest.axes if a is not axis))
    analyzer.bind(axis.var, Range.from_min_extent(low, count))
    return analyzer.simplify(nest.value)


def _slow_axis(nest: Nest, axis: Axis) -> Axis | None:
    """The axis along which some operand is contiguous that strides along the innermost one."""
    if _is_bool(nest) or thresholds(nest, axis):
        return None
    for load in loads_in(nest.value):
        stride = coefficient(load.indices[0], axis.var)
        if stride is None or static(stride) in (0, 1):
            continue
        for other in nest.axes[:-1]:
            along = coefficient(load.indices[0], other.var)
            if along is not None and is_one(along):
                return other
    return None


def _store(nest: Nest, value: Expr, axis: Axis) -> Store:
    def store(j: Expr) -> Any:
        where = {axis.var: j}
        return tirx.BufferStore(
            nest.out, substitute(value, where), [substitute(nest.offset, where)]
        )

    return store


def _tiled(nest: Nest, axis: Axis, slow: Axis, lanes: int) -> Any:
    """Tiles small enough that both the rows read and the rows written stay in the L1 cache."""
    outer = [other for other in nest.axes[:-1] if other is not slow]
    tiles = Axis(tirx.Var("tile", "int64"), tirx.ceildiv(slow.extent, integer(_TILE)))
    start = tiles.var * integer(_TILE)
    size = tirx.min(integer(_TILE), slow.extent - start)
    known = static(slow.extent)
    if known is not None and known % _TILE == 0:
        size = integer(_TILE)
    columns = Axis(tirx.Var("column", "int64"), tirx.ceildiv(axis.extent, integer(_TILE)))
    known = static(axis.extent)

    def tile() -> Any:
        first = columns.var * integer(_TILE)
        count = tirx.min(integer(_TILE), axis.extent - first)

        def line(i: Expr) -> Any:
            moved = nest.mapped(lambda expr: substitute(expr, {slow.var: start + i}))
            store = _store(moved, moved.value, axis)
            if known is not None and known % _TILE == 0:
                return loop(_TILE, lambda j: store(first + j), ForKind.VECTORIZED, "v")
            whole = loop(_TILE, lambda j: store(first + j), ForKind.VECTORIZED, "v")
            rest = loop(count, lambda j: store(first + j), name="j")
            return tirx.IfThenElse(count == integer(_TILE), whole, rest)

        return loop(size, line, name="i")

    kind = ForKind.PARALLEL if is_large([a.extent for a in nest.axes]) else ForKind.SERIAL
    inner = tirx.For(columns.var, integer(0), columns.extent, ForKind.SERIAL, tile())
    return over([*outer, tiles], lambda: inner, kind)


def emit_elementwise(nest: Nest, lanes: int) -> Any:
    """The statement that computes the nest; it has no reduction."""
    if not nest.axes:
        return tirx.BufferStore(nest.out, nest.value, [nest.offset])
    *outer, axis = nest.axes
    lanes = lanes_of(nest, lanes)
    slow = _slow_axis(nest, axis)
    if slow is not None and lanes > 1:
        return _tiled(nest, axis, slow, lanes)
    kind = ForKind.PARALLEL if is_large([a.extent for a in nest.axes]) else ForKind.SERIAL
    segments = _segments(nest, axis)
    rows = static(product([a.extent for a in outer]))
    if len(segments) == 1 and kind is ForKind.PARALLEL and rows is not None and rows < 8:
        return _chunked(nest, outer, axis, lanes)

    def body() -> Any:
        parts = []
        for low, count in segments:
            value = _in_segment(nest, axis, low, count) if len(segments) > 1 else nest.value
            parts.append(row(nest, axis, low, count, lanes, _store(nest, value, axis)))
        return sequence(parts)

    return over(outer, body, kind)


def _chunked(nest: Nest, outer: list[Axis], axis: Axis, lanes: int) -> Any:
    """Few long rows: pieces of the rows in parallel."""
    chunk = integer(_CHUNK)
    whole = tirx.floordiv(axis.extent, chunk)
    pieces = Axis(tirx.Var("piece", "int64"), nest.dimensions.analyzer().simplify(whole))
    store = _store(nest, nest.value, axis)
    main = over(
        [*(a for a in outer), pieces],
        lambda: row(nest, axis, pieces.var * chunk, chunk, lanes, store),
        ForKind.PARALLEL,
    )
    done = nest.dimensions.analyzer().simplify(whole * chunk)
    rest = nest.dimensions.analyzer().simplify(axis.extent - done)
    if is_zero(rest):
        return main
    fresh = {a.var: a.fresh() for a in outer}
    swap = {old: new.var for old, new in fresh.items()}
    moved = nest.mapped(lambda expr: substitute(expr, swap))
    last = over(
        list(fresh.values()),
        lambda: row(moved, axis, done, rest, lanes, _store(moved, moved.value, axis)),
        ForKind.SERIAL,
    )
    return sequence([main, last])
