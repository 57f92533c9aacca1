"""A square of float32 vectors, turned in registers."""

from tvm import tirx

from lbcompiler.targets.cpu.intrinsics import Expr, bound


def transposed(rows: list[Expr]) -> list[Expr]:
    """n vectors of n lanes -> the n columns, n a power of two: log2(n) rounds of n shuffles.

    A round takes pairs of vectors `step` apart and exchanges, in every group of 2 * step lanes, the
    second half of one with the first half of the other.
    """
    rows, count, step = list(rows), len(rows), 1
    while step < count:
        firsts = [j if not j & step else count + j - step for j in range(count)]
        seconds = [j + step if not j & step else count + j for j in range(count)]
        for i in range(count):
            if not i & step:
                pair = [rows[i], rows[i + step]]
                rows[i] = bound(tirx.Shuffle(pair, firsts))
                rows[i + step] = bound(tirx.Shuffle(pair, seconds))
        step *= 2
    return rows
