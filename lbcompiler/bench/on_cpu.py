"""Target cpu in `lbc bench`: see `BenchTarget`.

All that is timed takes turns (`timing.interleaved`). At M below 16 a linear reads its weights once
for little arithmetic: they are cold then, as in a model that is larger than the caches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lbcompiler.bench.gemm import CEILING, OURS, QUANTIZE, GemmRow
from lbcompiler.bench.peers import check_peers, peers
from lbcompiler.bench.targets import Bounds, Row, Settings
from lbcompiler.bench.timing import Progress, interleaved
from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat
from lbcompiler.targets.configs import Shape, Tuned
from lbcompiler.targets.cpu import tuned_for
from lbcompiler.targets.cpu.bench import ceiling_of, timed_linear
from lbcompiler.targets.cpu.ceilings import Ceiling, ceilings
from lbcompiler.targets.cpu.isa import Isa, detect, isa_named
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.threads import set_threads

MEMORY = "read"
SMALL_M = 16
COLD_BYTES = 1 << 28  # of the copies of one weight that take turns: several times any L3 here


def rows(shapes: Sequence[Shape], settings: Settings) -> Row:
    """Without peers unless they are named."""
    isa, tuned = tuned_for(settings.variant, settings.results)
    if not isa.runs_on(detect()):
        raise ConfigError(f"this machine cannot run {isa.name}: its best is {detect().name}")
    check_peers(settings.peer_names or (), shapes)
    threads = set_threads(settings.threads)
    return _Bench(isa, tuned, threads, settings, ceilings(isa, threads)).row


def bounds(isa: str, threads: int, _rounds: int) -> Bounds:
    held = ceilings(isa_named(isa), threads)

    def rates(took: Mapping[str, float]) -> dict[str, float]:
        return {name: bound.amount / took[name] * 1e-9 for name, bound in held.items()}

    return Bounds({name: bound.run for name, bound in held.items()}, rates)


def bound_of(weight: BlockFormat | None, act: BlockFormat | None, isa: str, rows: int) -> str:
    return ceiling_of(kernel_for(weight, act, isa_named(isa)), rows)


@dataclass(frozen=True)
class _Bench:
    isa: Isa
    tuned: Tuned
    threads: int
    settings: Settings
    bounds: dict[str, Ceiling]

    def row(
        self,
        weight: BlockFormat,
        act: BlockFormat | None,
        shape: Shape,
        progress: Progress,
    ) -> GemmRow:
        bounds, rounds = self.bounds, self.settings.rounds
        progress("", 0, rounds)
        cold = 0 if self.settings.hot or shape[0] >= SMALL_M else COLD_BYTES
        linear = timed_linear(weight, act, self.isa, shape, cold, self.tuned)
        names = self.settings.peer_names or ()
        others, missing = peers(names, weight.element.bits, shape, self.threads, cold)
        needed = {linear.ceiling, MEMORY} & bounds.keys()
        work: dict[str, Any] = {OURS: linear.run}
        if linear.quantize is not None:
            work[QUANTIZE] = linear.quantize
        work |= {CEILING + name: bounds[name].run for name in needed}
        work |= {name: peer.run for name, peer in others.items()}
        took = interleaved(work, rounds, progress=progress)
        rate = {name: bounds[name].amount / took[CEILING + name] * 1e-9 for name in needed}
        calls = {name: took[name] for name in (OURS, QUANTIZE) if name in took}
        calls |= {name: took[name] / peer.calls for name, peer in others.items()}
        return GemmRow.of(
            shape,
            (weight, act),
            linear,
            cold,
            calls,
            rate.get(linear.ceiling),
            rate[MEMORY],
            isa=self.isa.name,
            threads=self.threads,
            ceiling=linear.ceiling,
            missing=missing,
        )
