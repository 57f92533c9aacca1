"""Things timed side by side, so that a machine whose speed drifts is fair to all of them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Work = Callable[[], Any]
Progress = Callable[[str, int, int], None]
VISIT_S = 0.05  # of one visit: many calls of short work, one of long
SETTLE_S = 0.01  # before a visit: the last one's idle workers spin for a while before they sleep


def interleaved(
    work: Mapping[str, Work],
    rounds: int,
    limit_s: float = float("inf"),
    visit_s: float = VISIT_S,
    progress: Progress = lambda _stage, _done, _total: None,
) -> dict[str, float]:
    """Median seconds of one call of each, over rounds that visit all of them in shuffled order.

    A visit calls at least once and until `visit_s` have passed; its mean is one sample. Rounds end
    early once `limit_s` have passed.
    """
    for call in work.values():
        call()  # warm: caches, lazily started threads
    order, shuffle = list(work), random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in work}
    end = time.perf_counter() + limit_s
    for done in range(rounds):
        progress("time", done, rounds)
        shuffle.shuffle(order)
        for name in order:
            time.sleep(SETTLE_S)
            samples[name].append(_mean(work[name], visit_s))
        if time.perf_counter() > end:
            break
    progress("time", rounds, rounds)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _mean(call: Work, seconds: float) -> float:
    start, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        passed = time.perf_counter() - start
        if passed >= seconds:
            return passed / count
