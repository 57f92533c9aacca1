"""How long the kernels of a group take on this machine, for a budget of time."""

from collections.abc import Sequence
from functools import cache

from lbcompiler.bench.timing import interleaved
from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.cut import WIDE
from lbcompiler.formats import format_named
from lbcompiler.targets.cpu import tuned_for
from lbcompiler.targets.cpu.bench import timed_linear

ROWS = 128  # of activations: a short text, or a batch of decoders
ROUNDS = 5


def kernel_seconds(solution: Solution | None, shapes: Sequence[tuple[int, ...]]) -> float:
    """Of linears (N, K) over ROWS rows, quantization included; infinite for float, which no
    budget of time asks for.
    """
    if solution is None:
        return float("inf")
    choice = solution.choice
    seconds = sum(_seconds(choice.weight_format, choice.act_format, n, k) for n, k in shapes)
    if not solution.taken:
        return seconds
    return seconds + sum(_seconds(WIDE, WIDE, n, solution.taken) for n, _ in shapes)


@cache
def _seconds(weight: str, act: str, n: int, k: int) -> float:
    isa, tuned = tuned_for()
    act_format = None if act == WEIGHT_ONLY else format_named(act)
    linear = timed_linear(format_named(weight), act_format, isa, (ROWS, k, n), 0, tuned)
    return interleaved({"linear": linear.run}, ROUNDS)["linear"]
