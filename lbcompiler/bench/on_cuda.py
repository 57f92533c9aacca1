"""Target cuda in `lbc bench`: see `BenchTarget`.

Everything is recorded once and then takes turns in shuffled rounds, timed by CUDA events. Weights
are cold up to 16 rows, as in a model that is larger than the L2 cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lbcompiler.bench.gemm import OURS, QUANTIZE, GemmRow
from lbcompiler.bench.peers_cuda import PEERS, check_peers, cublas_bf16, peers
from lbcompiler.bench.targets import Bounds, Row, Settings
from lbcompiler.bench.timing import Progress, medians, silent
from lbcompiler.errors import LbcError
from lbcompiler.formats import BlockFormat
from lbcompiler.targets.configs import Shape, Tuned
from lbcompiler.targets.cuda import tuned_for
from lbcompiler.targets.cuda.arch import Arch, arch_named
from lbcompiler.targets.cuda.bench import FEW_ROWS, timed_linear
from lbcompiler.targets.cuda.ceilings import copies, copy_rate
from lbcompiler.targets.cuda.clock import Clock, Recorded
from lbcompiler.targets.cuda.machine import gpu_for
from lbcompiler.targets.cuda.toolchain import find_nvcc

MEMORY = "copy"
PEAK = (4096, 8192, 8192)  # M, K, N of the product that stands for the bfloat16 peak
PEAK_NAME = "bf16 peak"


def rows(_shapes: Sequence[Shape], settings: Settings) -> Row:
    """With all peers that there are unless some are named; a row says why another is missing.
    DeviceError where the GPU fails.
    """
    check_peers(settings.peer_names or ())
    variant = settings.variant
    arch, gpu = gpu_for(variant, "lbc bench gemm times", settings.threads)
    find_nvcc().check(arch)
    clock = Clock()
    tuned = tuned_for(arch, "" if variant else gpu.name, settings.results)
    return _Bench(arch, tuned, clock, settings, *_ceilings(arch, clock)).row


def interleaved(
    clock: Clock, work: Mapping[str, Recorded], rounds: int, progress: Progress = silent
) -> dict[str, float]:
    """Median seconds of one call of each."""
    return medians(work, lambda name: clock.seconds(work[name]), rounds, progress=progress)


def bounds(isa: str, _threads: int, rounds: int) -> Bounds:
    """`copy`, and `bf16` where there is cuBLAS, measured behind the model: its time is Python's and
    the GPU's, theirs the GPU's alone.
    """

    def rates(_took: Mapping[str, float]) -> dict[str, float]:
        clock = Clock()
        held, moved, _ = _ceilings(arch_named(isa), clock)
        return _rates(interleaved(clock, held, rounds), moved)

    return Bounds({}, rates)


def bound_of(_weight: BlockFormat | None, _act: BlockFormat | None, _isa: str, _rows: int) -> str:
    return "bf16"


def _rates(took: Mapping[str, float], copied_bytes: int) -> dict[str, float]:
    rates = {MEMORY: copy_rate(took, copied_bytes) * 1e-9}
    if PEAK_NAME in took:
        m, k, n = PEAK
        rates["bf16"] = 2e-9 * m * k * n / took[PEAK_NAME]
    return rates


def _ceilings(arch: Arch, clock: Clock) -> tuple[dict[str, Recorded], int, dict[str, str]]:
    """(what is recorded of them, the bytes that a copy moves, why there is no peak)."""
    bounds, moved = copies(arch, clock)
    missing: dict[str, str] = {}
    try:
        bounds[PEAK_NAME] = cublas_bf16(PEAK, 0, clock)
    except LbcError as error:
        missing[PEAK_NAME] = str(error)
    return bounds, moved, missing


@dataclass(frozen=True)
class _Bench:
    arch: Arch
    tuned: Tuned
    clock: Clock
    settings: Settings
    bounds: dict[str, Recorded]
    copied_bytes: int
    missing: dict[str, str]  # of the bounds

    def row(
        self,
        weight: BlockFormat,
        act: BlockFormat | None,
        shape: Shape,
        progress: Progress,
    ) -> GemmRow:
        names, rounds = self.settings.peer_names, self.settings.rounds
        progress("", 0, rounds)
        cold = 0 if self.settings.hot or shape[0] > FEW_ROWS else self.clock.cold_bytes
        linear = timed_linear(weight, act, self.arch, shape, cold, self.tuned, self.clock)
        others, missing = peers(tuple(PEERS if names is None else names), shape, cold, self.clock)
        work = {OURS: linear.whole, QUANTIZE: linear.quantize, **self.bounds, **others}
        took = interleaved(self.clock, work, rounds, progress)
        rates = _rates(took, self.copied_bytes)
        return GemmRow.of(
            shape,
            (weight, act),
            linear,
            cold,
            {name: took[name] for name in (OURS, QUANTIZE, *others)},
            rates.get("bf16"),
            rates[MEMORY],
            isa=self.arch.name,
            threads=1,
            ceiling="bf16",
            missing=self.missing | missing,
            memory=MEMORY,
            is_graph=linear.whole.is_graph,
        )
