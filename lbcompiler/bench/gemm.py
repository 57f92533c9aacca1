"""`lbc bench gemm`: one linear, ours and the peers', beside the ceilings of the machine.

All that is timed takes turns (`timing.interleaved`). At M below 16 a linear reads its weights once
for little arithmetic: they are cold then, as in a model that is larger than the caches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lbcompiler.bench.peers import Shape, peers
from lbcompiler.bench.timing import Progress, interleaved
from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu.bench import timed_linear
from lbcompiler.targets.cpu.ceilings import ceilings
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.threads import set_threads

SMALL_M = 16
COLD_BYTES = 300 << 20  # of the copies of one weight that take turns: several times any L3 here
OURS, QUANTIZE = "ours", "quantize"


@dataclass(frozen=True)
class Speed:
    ms: float
    gops: float


@dataclass(frozen=True)
class Row:
    """One shape; see docs/json.md. `ceiling_gops` is None where the ISA has no measure of it."""

    shape: Shape
    format: str
    act_format: str
    threads: int
    is_cold: bool
    ms: float
    quantize_ms: float
    gops: float
    ceiling: str
    ceiling_gops: float | None
    ceiling_share: float | None
    weight_gb_s: float
    dram_gb_s: float
    dram_share: float
    peers: dict[str, Speed] = field(default_factory=dict)


def bench_gemm(
    weight: BlockFormat,
    act: BlockFormat | None,
    shapes: Sequence[Shape],
    isa: Isa,
    *,
    threads: int | None = None,
    peer_names: Sequence[str] = (),
    rounds: int = 7,
    hot: bool = False,
    progress: Progress = lambda _stage, _done, _total: None,
) -> list[Row]:
    """A row for each shape (M, K, N); `hot` leaves the weights in the caches at every M."""
    count = set_threads(threads)
    bounds = ceilings(isa, count)
    rows = []
    for shape in shapes:
        m, k, n = shape
        cold = 0 if hot or m >= SMALL_M else COLD_BYTES
        linear = timed_linear(weight, act, isa, shape, cold)
        others = peers(peer_names, weight.element.bits, shape, count, cold)
        work: dict[str, Any] = {OURS: linear.run}
        if linear.quantize is not None:
            work[QUANTIZE] = linear.quantize
        work |= {f"ceiling {name}": bound.run for name, bound in bounds.items()}
        work |= {name: peer.run for name, peer in others.items()}
        took = interleaved(work, rounds, progress=progress)
        took |= {name: took[name] / peer.calls for name, peer in others.items()}
        rate = {name: b.amount / took[f"ceiling {name}"] * 1e-9 for name, b in bounds.items()}
        operations, seconds = 2e-9 * m * k * n, took[OURS]
        ceiling = rate.get(linear.ceiling)
        weight_rate = linear.weight_bytes / seconds * 1e-9
        rows.append(
            Row(
                shape=shape,
                format=weight.name,
                act_format="none" if act is None else act.name,
                threads=count,
                is_cold=cold > 0,
                ms=seconds * 1e3,
                quantize_ms=took.get(QUANTIZE, 0.0) * 1e3,
                gops=operations / seconds,
                ceiling=linear.ceiling,
                ceiling_gops=ceiling,
                ceiling_share=None if ceiling is None else operations / seconds / ceiling,
                weight_gb_s=weight_rate,
                dram_gb_s=rate["read"],
                dram_share=weight_rate / rate["read"],
                peers={name: Speed(took[name] * 1e3, operations / took[name]) for name in others},
            )
        )
    return rows
