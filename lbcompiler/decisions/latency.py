"""How long the kernels of a group take on this machine, for a budget of time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lbcompiler.bench.timing import interleaved
from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.cut import WIDE
from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat, format_named
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets import parts_of
from lbcompiler.targets.configs import Source, Tuned
from lbcompiler.targets.cpu import tuned_for
from lbcompiler.targets.cpu.bench import timed_linear
from lbcompiler.targets.cpu.isa import Isa, obstacle

ROWS = 128  # of activations: a short text, or a batch of decoders
ROUNDS = 5

# (a solution or None for float, the shapes (N, K) of its weights) -> seconds
KernelSeconds = Callable[[Solution | None, Sequence[tuple[int, ...]]], float]
Key = tuple[BlockFormat | None, BlockFormat | None, str, Rotation | None, int, int]


def kernel_seconds(target: str, results: Sequence[Source], seed: int | None) -> KernelSeconds:
    """Times the kernels of `target` with the configs that it would compile. seed: of rotations.

    Raises ConfigError where this machine cannot run them."""
    isa, tuned = tuned_for(parts_of(target)[1], results)
    if reason := obstacle(isa):
        raise ConfigError(
            f"--max-latency times kernels on this machine, and those of {target} are for "
            f"{isa.name}, {reason}: choose another budget, such as --effective-bits"
        )
    return _Kernels(isa, tuned, seed)


@dataclass
class _Kernels:
    """Each kernel is timed once."""

    isa: Isa
    tuned: Tuned
    seed: int | None
    known: dict[Key, tuple[float, float]] = field(default_factory=dict)

    def __call__(self, solution: Solution | None, shapes: Sequence[tuple[int, ...]]) -> float:
        """Of linears (N, K) over ROWS rows of one input, which is rotated and quantized once."""
        if solution is None:
            return self._group((None, None, "", None), [(n, k) for n, k in shapes])
        choice, act = solution.choice, None
        if choice.act_format != WEIGHT_ONLY:
            act = format_named(choice.act_format)
        rotation = Rotation(choice.hadamard, self.seed) if choice.hadamard else None
        rule = "" if act is None else choice.act_rule
        linear = (format_named(choice.weight_format), act, rule, rotation)
        seconds = self._group(linear, [(n, k) for n, k in shapes])
        if not solution.taken:
            return seconds
        wide = format_named(WIDE)
        return seconds + self._group(
            (wide, wide, "", None), [(n, solution.taken) for n, _ in shapes]
        )

    def _group(
        self,
        linear: tuple[BlockFormat | None, BlockFormat | None, str, Rotation | None],
        shapes: Sequence[tuple[int, int]],
    ) -> float:
        taken = [self._linear((*linear, n, k)) for n, k in shapes]
        return sum(whole for whole, _ in taken) - sum(quantize for _, quantize in taken[1:])

    def _linear(self, key: Key) -> tuple[float, float]:
        """(the whole linear, what it does to its input before the product)."""
        if key not in self.known:
            weight, act, rule, rotation, n, k = key
            linear = timed_linear(
                weight, act, self.isa, (ROWS, k, n), 0, self.tuned, rule, rotation
            )
            work = {"whole": linear.run}
            if linear.quantize is not None:
                work["quantize"] = linear.quantize
            seconds = interleaved(work, ROUNDS)
            self.known[key] = seconds["whole"], seconds.get("quantize", 0.0)
        return self.known[key]
