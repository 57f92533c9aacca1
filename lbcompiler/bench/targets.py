"""What `lbc bench` needs of a target: `on_NAME.py` has the functions of `BenchTarget`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lbcompiler.bench.gemm import GemmRow
from lbcompiler.bench.timing import ROUNDS, Progress, Work, silent
from lbcompiler.formats import BlockFormat
from lbcompiler.targets import side_of
from lbcompiler.targets.configs import Shape, Source


@dataclass(frozen=True)
class Bounds:
    """`work` takes turns with a model; `rates` makes of its seconds, by name, GOP/s of arithmetic
    and GB/s of `read` or `copy`, or measures them then.
    """

    work: Mapping[str, Work]
    rates: Callable[[Mapping[str, float]], dict[str, float]]


NONE = Bounds({}, lambda _took: {})


@dataclass(frozen=True)
class Settings:
    """How linears are timed. `variant`: an instruction set's or architecture's name, "" for what
    suits the machine; `results` of tuning go before those that are shipped; `peer_names` None: the
    target's own choice; `hot` leaves the weights in the caches at every M.
    """

    variant: str = ""
    results: Sequence[Source] = ()
    threads: int | None = None
    peer_names: Sequence[str] | None = None
    rounds: int = ROUNDS
    hot: bool = False


# (formats of weights and activations, M x K x N, progress) -> what was measured
Row = Callable[[BlockFormat, BlockFormat | None, Shape, Progress], GemmRow]


class BenchTarget(Protocol):
    MEMORY: str  # the name of the rate that bounds what is not arithmetic

    def rows(self, shapes: Sequence[Shape], settings: Settings) -> Row:
        """What times a linear of any of the shapes. Raises ConfigError for a peer that is not there
        or does not take a shape, and for code that this machine cannot run.
        """

    def bounds(self, isa: str, threads: int, rounds: int) -> Bounds:
        """Of the machine, for a model compiled for `isa`."""

    def bound_of(
        self, weight: BlockFormat | None, act: BlockFormat | None, isa: str, rows: int
    ) -> str:
        """The name of the rate that bounds the arithmetic of a linear."""


def bench_gemm(
    target: str,
    formats: Iterable[tuple[BlockFormat, BlockFormat | None]],
    shapes: Sequence[Shape],
    settings: Settings,
    progress: Progress = silent,
) -> list[GemmRow]:
    """A row for each pair of formats (weights, activations) and each shape (M, K, N). Raises as
    `BenchTarget.rows`.
    """
    row, found = bench_target(target).rows(shapes, settings), []
    for weight, act in formats:
        for shape in shapes:
            stage = f"{weight.name} {'x'.join(map(str, shape))}"

            def within(_stage: str, done: int, total: int, stage: str = stage) -> None:
                progress(stage, done, total)

            found.append(row(weight, act, shape, within))
    return found


def bench_target(name: str) -> BenchTarget:
    """`name`: one of TARGETS."""
    found: BenchTarget = side_of(__package__, name)
    return found
