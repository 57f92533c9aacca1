"""The search for one kernel at one shape: batches of candidates are compiled at once and timed one
after the other, then the best are timed again until it is sure that they are."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbcompiler.pipeline import Progress
from lbcompiler.tuning.measure import Bench, CandidateError
from lbcompiler.tuning.study import TuningStudy

if TYPE_CHECKING:
    from optuna.trial import Trial

SEARCHING = 0.8  # share of the time for new configs; the rest makes sure of the best


@dataclass(frozen=True)
class Limits:
    """Whichever ends first: `trials` in all, earlier runs counted, or `seconds` of this run."""

    trials: int = 60
    seconds: float = 45.0
    jobs: int = 1  # candidates compiled at once


def search(study: TuningStudy, bench: Bench, limits: Limits, progress: Progress) -> None:
    """Try configs until a limit is reached. What is interrupted is tried again another time."""
    start = time.monotonic()
    while time.monotonic() < start + SEARCHING * limits.seconds:
        done = study.searched
        progress(study.work.name, min(done, limits.trials), limits.trials)
        room = min(limits.jobs, limits.trials - done)
        batch = _batch(lambda: study.ask(limits.trials), room)
        if not batch:
            break
        _measure(study, bench, batch)
    while time.monotonic() < start + limits.seconds:
        again = _batch(study.ask_again, 1)
        if not again:
            break
        _measure(study, bench, again)
    progress(study.work.name, limits.trials, limits.trials)


def _batch(ask: "Callable[[], Trial | None]", count: int) -> "list[Trial]":
    batch = []
    for _ in range(count):
        trial = ask()
        if trial is None:
            break
        batch.append(trial)
    return batch


def _measure(study: TuningStudy, bench: Bench, batch: "list[Trial]") -> None:
    open_trials = list(batch)
    try:
        bench.build(study.work.config(trial.params) for trial in batch)
        for trial in batch:
            try:
                study.tell(trial, bench.compare(study.work.config(trial.params)))
            except CandidateError as error:
                study.fail(trial, str(error))
            open_trials.remove(trial)
    except BaseException:
        for trial in open_trials:
            study.give_back(trial)
        raise
