"""`lbc bench gemm`: one linear, ours and the peers', beside the ceilings of the machine.

All that is timed takes turns (`timing.interleaved`). At M below 16 a linear reads its weights once
for little arithmetic: they are cold then, as in a model that is larger than the caches.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lbcompiler.bench.peers import check_peers, peers
from lbcompiler.bench.timing import ROUNDS, Progress, interleaved, silent
from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat
from lbcompiler.targets.configs import Shape, Tuned
from lbcompiler.targets.cpu.bench import timed_linear
from lbcompiler.targets.cpu.ceilings import Ceiling, ceilings
from lbcompiler.targets.cpu.isa import Isa, detect
from lbcompiler.targets.cpu.threads import set_threads

SMALL_M = 16
COLD_BYTES = 1 << 28  # of the copies of one weight that take turns: several times any L3 here
OURS, QUANTIZE, CEILING = "ours", "quantize", "ceiling "


@dataclass(frozen=True)
class PeerSpeed:
    """`ratio` above 1: ours is faster."""

    ms: float
    gops: float
    ratio: float


@dataclass(frozen=True)
class GemmRow:
    """One format and shape; see docs/json.md. What the instruction set has no ceiling for is None.

    `ms` is the whole linear, `quantize_ms` the part of it that quantizes the activations.
    """

    shape: Shape
    format: str
    act_format: str
    isa: str
    config_source: str
    threads: int
    cold: bool
    ms: float
    quantize_ms: float
    gops: float
    ceiling: str
    ceiling_gops: float | None
    ceiling_share: float | None
    weight_gb_s: float
    dram_gb_s: float
    dram_share: float
    peers: dict[str, PeerSpeed]
    missing: dict[str, str] = field(default_factory=dict)  # the reason of a peer that could not
    is_graph: bool = False  # a GPU's launches were captured: nothing but its own gaps is timed

    @classmethod
    def of(
        cls,
        shape: Shape,
        formats: tuple[BlockFormat, BlockFormat | None],
        linear: Any,
        cold: int,
        calls: Mapping[str, float],
        peak: float | None,
        dram: float,
        **told: Any,
    ) -> "GemmRow":
        """linear: the `TimedLinear` of a target; calls: seconds of one call of OURS, of QUANTIZE
        where there is one, and of each peer; peak: GOP/s; dram: GB/s; told: the other fields.
        """
        (m, k, n), (weight, act), seconds = shape, formats, calls[OURS]
        operations, weight_rate = 2e-9 * m * k * n, linear.weight_bytes / seconds * 1e-9
        return cls(
            shape=shape,
            format=weight.name,
            act_format=WEIGHT_ONLY if act is None else act.name,
            config_source=linear.config_source,
            cold=0 < cold <= linear.weight_bytes * linear.copies,
            ms=seconds * 1e3,
            quantize_ms=calls.get(QUANTIZE, 0.0) * 1e3,
            gops=operations / seconds,
            ceiling_gops=peak,
            ceiling_share=None if peak is None else operations / seconds / peak,
            weight_gb_s=weight_rate,
            dram_gb_s=dram,
            dram_share=weight_rate / dram,
            peers={
                name: PeerSpeed(call * 1e3, operations / call, call / seconds)
                for name, call in calls.items()
                if name not in (OURS, QUANTIZE)
            },
            **told,
        )


def bench_gemm(
    formats: Iterable[tuple[BlockFormat, BlockFormat | None]],
    shapes: Sequence[Shape],
    isa: Isa,
    *,
    tuned: Tuned | None = None,
    threads: int | None = None,
    peer_names: Sequence[str] = (),
    rounds: int = ROUNDS,
    hot: bool = False,
    progress: Progress = silent,
) -> list[GemmRow]:
    """A row for each pair of formats (weights, activations) and each shape.

    `tuned` has the kernels' configs; `hot` leaves the weights in the caches at every M. Raises
    ConfigError for a peer that is not there or does not take a shape, and for an instruction set
    that this machine lacks.
    """
    if not isa.runs_on(detect()):
        raise ConfigError(f"this machine cannot run {isa.name}: its best is {detect().name}")
    pairs = list(formats)
    check_peers(peer_names, shapes)
    bench = _Bench(isa, tuned or Tuned(), set_threads(threads), tuple(peer_names), rounds, hot)
    bounds = ceilings(isa, bench.threads)
    rows = []
    for weight, act in pairs:
        for shape in shapes:
            stage = f"{weight.name} {'x'.join(map(str, shape))}"

            def within(_stage: str, done: int, total: int, stage: str = stage) -> None:
                progress(stage, done, total)

            rows.append(bench.row(weight, act, shape, bounds, within))
    return rows


@dataclass(frozen=True)
class _Bench:
    isa: Isa
    tuned: Tuned
    threads: int
    peer_names: tuple[str, ...]
    rounds: int
    hot: bool

    def row(
        self,
        weight: BlockFormat,
        act: BlockFormat | None,
        shape: Shape,
        bounds: dict[str, Ceiling],
        progress: Progress,
    ) -> GemmRow:
        progress("", 0, self.rounds)
        cold = 0 if self.hot or shape[0] >= SMALL_M else COLD_BYTES
        linear = timed_linear(weight, act, self.isa, shape, cold, self.tuned)
        others = peers(self.peer_names, weight.element.bits, shape, self.threads, cold)
        needed = {linear.ceiling, "read"} & bounds.keys()
        work: dict[str, Any] = {OURS: linear.run}
        if linear.quantize is not None:
            work[QUANTIZE] = linear.quantize
        work |= {CEILING + name: bounds[name].run for name in needed}
        work |= {name: peer.run for name, peer in others.items()}
        took = interleaved(work, self.rounds, progress=progress)
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
            rate["read"],
            isa=self.isa.name,
            threads=self.threads,
            ceiling=linear.ceiling,
        )
