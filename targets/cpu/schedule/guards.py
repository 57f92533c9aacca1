"""Zero padding inside a sum of products: its conditions, taken out of the innermost loops.

In sum(if_then_else(inside, x, 0) * w) what is outside adds nothing. A condition that all of a tile
shares skips the step for the whole tile; one that differs by row is asked once a tile, for the
corners of the box of rows and reduced axes: it is linear, so where it holds there it holds
everywhere between, and only the tiles at an image's edge ask it row by row.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from tvm import tirx
from tvm.ir import TensorLoad

from lbcompiler.targets.cpu.schedule.expressions import (
    Expr,
    coefficient,
    loads_in,
    op_name,
    same,
    substitute,
    variables_in,
)
from lbcompiler.targets.cpu.schedule.stages import Axis, Combine, Stage

_LINEAR = tirx.LT | tirx.LE | tirx.GT | tirx.GE


def unguarded(value: Expr) -> tuple[Expr, list[Expr]]:
    """(x * w, conditions) of if_then_else(conditions, x, 0) * w; (value, []) of anything else."""
    if not isinstance(value, tirx.Mul):
        return value, []
    for padded, other in ((value.a, value.b), (value.b, value.a)):
        found = _padding(padded)
        if found is not None and not _is_padding(other):
            return found[0] * other, found[1]
    return value, []


def pads_product(producer: Stage, reader: Stage, load: Expr) -> bool:
    """Whether a padding is better asked for in the tiles of its one reader than stored: the reader
    sums products of it, and walks with its innermost axis along one that no condition is about.
    """
    found = _padding(producer.value)
    if found is None or reader.combine is not Combine.SUM or not isinstance(reader.value, tirx.Mul):
        return False
    if not any(same(factor, load) for factor in (reader.value.a, reader.value.b)):
        return False
    inner, last = producer.indices[-1], load.indices[-1]
    if not (isinstance(inner, tirx.Var) and reader.axes and last.same_as(reader.axes[-1].var)):
        return False
    return all(inner not in variables_in(condition) for condition in found[1])


def steps(
    conditions: Sequence[Expr],
    row: Axis | None,
    corners: Callable[[Expr], Sequence[Expr]],
    whole: Any,
    by_row: Callable[[Callable[[Expr], Expr]], Any],
    reduce: Callable[[Any], Any],
) -> Any:
    """The reduction of a tile: `whole` for all its rows, `by_row(conditions)` where they differ."""
    own = [c for c in conditions if row is not None and row.var in variables_in(c)]
    common = [c for c in conditions if not any(c.same_as(other) for other in own)]

    def reduced(step: Any) -> Any:
        return reduce(tirx.IfThenElse(tirx.all(*common), step, None) if common else step)

    if not own:
        return reduced(whole)
    inside = tirx.all(*[at for condition in own for at in corners(condition)])
    apart = by_row(lambda change: tirx.all(*[change(condition) for condition in own]))
    return tirx.IfThenElse(inside, reduced(whole), reduced(apart))


def at_corners(condition: Expr, ends: Sequence[tuple[Any, Expr, Expr]]) -> list[Expr]:
    """The condition with each variable it has at either of its ends (variable, first, last)."""
    used = [end for end in ends if end[0] in variables_in(condition)]
    choices = product(*[((var, first), (var, last)) for var, first, last in used])
    return [substitute(condition, dict(choice)) for choice in choices]


def _is_padding(value: Expr) -> bool:
    return op_name(value) == "if_then_else" if hasattr(value, "op") else False


def _padding(value: Expr) -> tuple[Expr, list[Expr]] | None:
    """(x, conditions) of if_then_else(conditions, x, 0) with linear ones of no loaded value."""
    if not _is_padding(value):
        return None
    condition, x, zero = value.args
    conditions = _flat(condition)
    if not isinstance(x, TensorLoad) or not isinstance(zero, tirx.FloatImm) or float(zero.value):
        return None
    is_linear = all(isinstance(c, _LINEAR) and not loads_in(c) for c in conditions)
    return (x, conditions) if is_linear and all(map(_is_affine, conditions)) else None


def _is_affine(condition: Expr) -> bool:
    return all(
        coefficient(side, var) is not None
        for side in (condition.a, condition.b)
        for var in variables_in(side)
    )


def _flat(condition: Expr) -> list[Expr]:
    if isinstance(condition, tirx.And):
        return [*_flat(condition.a), *_flat(condition.b)]
    return [condition]
