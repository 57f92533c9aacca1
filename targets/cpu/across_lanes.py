"""What moves numbers across the lanes of float32 vectors: a square turned, sums and maxima.

Lanes are added in pairs of neighbours, then pairs of pairs: in `sum_of` and `sums_of` alike.
"""

from collections.abc import Callable

from tvm import tirx

from lbcompiler.targets.cpu.intrinsics import Expr, bound, lanes_of


def transposed(rows: list[Expr]) -> list[Expr]:
    """n vectors of n lanes -> the n columns, n a power of two: log2(n) rounds of n shuffles.

    A round takes pairs of vectors `step` apart and exchanges, in every group of 2 * step lanes, the
    second half of one with the first half of the other.
    """
    rows, step = list(rows), 1
    while step < len(rows):
        for i in range(len(rows)):
            if not i & step:
                rows[i], rows[i + step] = _exchanged(rows[i], rows[i + step], step)
        step *= 2
    return rows


def sums_of(rows: list[Expr]) -> Expr:
    """The sums of n vectors of n lanes, side by side: n - 1 pairs of shuffles, and additions."""
    step = 1
    while len(rows) > 1:
        pairs = [_exchanged(rows[i], rows[i + 1], step) for i in range(0, len(rows), 2)]
        rows = [bound(firsts + seconds) for firsts, seconds in pairs]
        step *= 2
    return rows[0]


def _exchanged(a: Expr, b: Expr, step: int) -> tuple[Expr, Expr]:
    lanes = lanes_of(a)
    firsts = [j if not j & step else lanes + j - step for j in range(lanes)]
    seconds = [j + step if not j & step else lanes + j for j in range(lanes)]
    return bound(tirx.Shuffle([a, b], firsts)), bound(tirx.Shuffle([a, b], seconds))


def larger(a: Expr, b: Expr) -> Expr:
    """The larger number of each lane; a where b is NaN."""
    return tirx.Select(a < b, b, a)


def sum_of(x: Expr) -> Expr:
    """The sum of the lanes."""
    return _folded(x, lambda a, b: a + b)


def largest_of(x: Expr) -> Expr:
    """The largest lane."""
    return _folded(x, larger)


def _folded(x: Expr, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    x = bound(x)
    while lanes_of(x) > 1:
        even = tirx.Shuffle([x], list(range(0, lanes_of(x), 2)))
        odd = tirx.Shuffle([x], list(range(1, lanes_of(x), 2)))
        x = bound(combine(even, odd))
    return x
