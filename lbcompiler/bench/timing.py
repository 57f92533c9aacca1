"""Things timed side by side, so that a machine whose speed drifts is fair to all of them."""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Work = Callable[[], Any]
Progress = Callable[[str, int, int], None]

ROUNDS = 11
VISIT_S = 0.03  # of one visit: many calls of short work, one of long
QUIET_S = 0.005  # this long without work in the process, and a visit may begin
PATIENCE_S = 0.5  # to wait for that: TVM's workers spin for 125 ms before they sleep


def silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody looks at."""


def interleaved(
    work: Mapping[str, Work],
    rounds: int = ROUNDS,
    limit_s: float = float("inf"),
    visit_s: float = VISIT_S,
    progress: Progress = silent,
) -> dict[str, float]:
    """Median seconds of one call of each, over rounds that visit all of them in shuffled order.

    A visit waits until the idle workers of the one before have gone to sleep: they would take a
    core from this one. Its first call, which wakes the threads again, counts only where it lasts
    as long as a visit should. Rounds end early once `limit_s` have passed.
    """
    for call in work.values():
        call()  # warm: caches, lazily started threads

    def visit(name: str) -> float:
        _wait_for_quiet()
        return _visit(work[name], visit_s)

    return medians(work, visit, rounds, limit_s, progress)


def medians(
    names: Iterable[str],
    visit: Callable[[str], float],
    rounds: int = ROUNDS,
    limit_s: float = float("inf"),
    progress: Progress = silent,
) -> dict[str, float]:
    """Of what `visit` measures of each name, over rounds that visit all of them in shuffled order
    and end early once `limit_s` have passed.
    """
    order, shuffle = list(names), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in order}
    end = time.perf_counter() + limit_s
    for done in range(rounds):
        progress("time", done, rounds)
        shuffle.shuffle(order)
        for name in order:
            samples[name].append(visit(name))
        if time.perf_counter() > end:
            break
    progress("time", rounds, rounds)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _wait_for_quiet() -> None:
    end = time.perf_counter() + PATIENCE_S
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(QUIET_S)
        if time.process_time() - before < QUIET_S / 5:
            return


def _visit(call: Work, seconds: float) -> float:
    """Mean seconds of a call."""
    start = time.perf_counter()
    call()
    first = time.perf_counter()
    if first - start >= seconds:
        return first - start
    count = 0
    while True:
        call()
        count += 1
        passed = time.perf_counter() - first
        if passed >= seconds:
            return passed / count
