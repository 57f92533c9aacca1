"""A bench that compiles and times nothing: what a config costs is a function."""

from collections.abc import Callable, Iterable
from typing import Any

from lbcompiler.formats import FORMATS
from lbcompiler.targets.configs import Tuned
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.isa import AVX2
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.tuning.database import Subject, versions
from lbcompiler.tuning.measure import CandidateError, Times
from lbcompiler.tuning.work import Work

KERNEL = kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], AVX2)
SMALL = Work.of(KERNEL, (1, 64, 64), Tuned())
LARGE = Work.of(KERNEL, (128, 4096, 64), Tuned())


def subject(work: Work, **changes: Any) -> Subject:
    facts = {
        "kernel": work.kernel.name,
        "isa": work.kernel.isa.name,
        "shape": work.shape,
        "processor": "znver5",
        "versions": versions(),
    }
    return Subject(**{**facts, **changes})


class StandIn:
    """`ratio(config)` says the share of the default's time, or raises; `seen` what was timed."""

    def __init__(self, ratio: Callable[[Config], float]) -> None:
        self.ratio = ratio
        self.built: list[list[Config]] = []
        self.seen: list[Config] = []

    def build(self, configs: Iterable[Config]) -> None:
        self.built.append(list(configs))

    def compare(self, config: Config) -> Times:
        self.seen.append(config)
        ratio = self.ratio(config)
        return Times(2 * ratio, 2.0, ratio)


def refuses(config: Config) -> float:
    raise CandidateError("no such register")
