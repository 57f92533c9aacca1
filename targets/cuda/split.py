"""A GEMM whose grid is too small for the GPU shares out K as well: a second launch adds up.

    launch 1, part z of K     parts[z, row, column] = the sum over its tiles
    launch 2, a thread a place    y = epilogue(((parts[0] + parts[1]) + parts[2]) + ..)

The order of the sum does not depend on which block is done first: results are the same bits on
each run. `parts` is a second result of the kernel: the artifact's memory plan has a place for it.
"""

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.intrinsics import Expr, Registers, bound, int32, int64, launch, let
from lbcompiler.targets.cuda.output import Output

THREADS = 256
FEW = 16  # rows that the kernels for few take


@dataclass(frozen=True)
class Parts:
    """Sums f32 (count * rows, n): those of part z from row z * rows on."""

    sums: Any
    count: int
    rows: int

    def output(self, output: Output, part: Expr) -> Output:
        """Where a part's sums go in place of y; nothing is done to them."""
        return replace(
            output,
            y=self.sums,
            row_scales=None,
            weight_scale=None,
            bias=None,
            activation="none",
            first_row=int64(part) * self.rows,
        )


@dataclass(frozen=True)
class Splits:
    """In how many parts K is taken for up to `FEW` rows and, of more, for up to `rows`."""

    few: int
    some: int
    rows: int

    @property
    def most(self) -> int:
        return max(self.few, self.some)

    @property
    def most_rows(self) -> int:
        return self.rows if self.some > 1 else FEW

    def specs(self, n: int) -> list[tuple[tuple[int, ...], str]]:
        """Of the arguments behind y."""
        return [((self.most * self.most_rows, n), "float32")] if self.most > 1 else []

    def declare(self, n: int) -> tuple[Parts | None, Parts | None]:
        """The argument, as it is used for few rows and for some; None where K is not shared out."""
        if self.most == 1:
            return None, None
        ((shape, kind),) = self.specs(n)
        sums = T.arg("parts", T.buffer(shape, kind))
        few, some = (Parts(sums, c, self.most_rows) for c in (self.few, self.some))
        return few if self.few > 1 else None, some if self.some > 1 else None

    def combine(self, few: Parts | None, some: Parts | None, output: Output) -> None:
        """The launch behind all others, where these have left parts."""
        parts = few or some
        if parts is None:
            return
        counts = [tirx.const(count, "int32") for count in (self.few, self.some)]
        left = output.m <= self.most_rows
        if few is None:
            left = tirx.And(left, output.m > FEW)
        with T.If(left), T.Then():
            emit_combine(parts, tirx.Select(output.m <= FEW, *counts), output)


@dataclass(frozen=True)
class Span:
    """The tiles of K that a block has, `first` to `end`."""

    first: Expr
    end: Expr

    @classmethod
    def of(cls, count: int, parts: int, part: Expr) -> "Span":
        """Of part number `part`; the last ones may have fewer tiles, or none."""
        if parts == 1:
            return cls(tirx.const(0, "int32"), tirx.const(count, "int32"))
        size = -(-count // parts)
        first = let(part * size)
        return cls(first, let(tirx.min(first + size, tirx.const(count, "int32"))))


def parts_to_fill(multiprocessors: int, blocks: int, tiles: int, least: int) -> int:
    """Parts of K, of at least `least` tiles each, that make `blocks` as many as there are
    multiprocessors.
    """
    return max(1, min(-(-multiprocessors // blocks), tiles // least))


def emit_combine(parts: Parts, count: Expr, output: Output) -> None:
    """The second launch: the first `count` parts of m rows, one thread a number of y."""
    size = output.m * output.n
    with launch([(size + (THREADS - 1)) // THREADS], THREADS) as ((block,), thread):
        index = let(int64(block) * THREADS + int64(thread))
        with T.If(index < size), T.Then():
            row, column = let(int32(index // output.n)), let(int32(index % output.n))
            total = Registers(1, "float32")
            total.clear()
            with T.serial(count) as part:
                at = int64(part) * parts.rows + int64(row)
                total[0] = total[0] + parts.sums[at, int64(column)]
            value = bound(total[0], "float32")
            output.store(row, column, [value], output.row_scale(row))
