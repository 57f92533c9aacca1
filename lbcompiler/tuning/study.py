"""The trials of one kernel at one shape: which config to try next, and which is the best.

A trial's value is its time as a share of the default's, measured beside it; a config's is the
median over its trials. The default and its neighbours, a step in one field, go first; then the
sampler decides. Noise makes the best of many look better than it is, so a config is chosen where it
was measured `CONFIRMED` times and needs no more than `GAIN` of the default's time; else the default
stays. The default's own fields and the space are part of a study's name: where they change, a new
study begins.
"""

import hashlib
import json
import platform
import random
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import psutil

from lbcompiler.targets.configs import Result
from lbcompiler.tuning.database import ATTRIBUTE, Subject
from lbcompiler.tuning.measure import Times
from lbcompiler.tuning.work import Fields, Work

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial

CONFIRMED = 3  # measurements of a config that is chosen
CONTENDERS = 3  # configs that are measured that often
GAIN = 0.98  # share of the default's time that a config has to reach
STARTUP = 12  # trials before the sampler believes what it saw
NAMELESS_S = 60  # after which a trial that no process put its name on is taken for dead
ORPHAN_S = 600  # after which the trial of another machine is taken for dead

# attributes of studies and trials
_DEFAULT, _MS, _DEFAULT_MS, _WORKER, _ERROR = "default", "ms", "default_ms", "worker", "error"
_AGAIN = "again"  # measures a config again, to be sure of it
_SECOND = "second"  # tries again what killed its process, or was killed with it
_GIVEN_BACK = "given back"


@dataclass(frozen=True)
class Score:
    """A config that was measured: its trial of the median ratio, the better one of two."""

    fields: Fields
    ratio: float
    ms: float
    default_ms: float
    count: int


class TuningStudy:
    """One Optuna study, made where it is missing."""

    def __init__(self, storage: "BaseStorage", work: Work, subject: Subject) -> None:
        import optuna

        self.work = work
        facts = [subject.to_json(), work.default_fields, dict(work.space)]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        self.study = optuna.create_study(
            storage=storage,
            study_name=f"{work.name} {digest}",
            sampler=optuna.samplers.TPESampler(n_startup_trials=STARTUP),
            load_if_exists=True,
        )
        self.study.set_user_attr(ATTRIBUTE, subject.to_json())
        self.study.set_user_attr(_DEFAULT, work.default_fields)
        self.distributions: dict[str, Any] = {
            name: optuna.distributions.CategoricalDistribution(tuple(choices))
            for name, choices in work.space.items()
        }
        self._settle()

    @property
    def searched(self) -> int:
        """Trials that are over, without those that measured a config again to be sure of it."""
        over = [trial for trial in self._trials() if trial.value is not None or _has_failed(trial)]
        return sum(_AGAIN not in trial.user_attrs for trial in over)

    @property
    def failed(self) -> int:
        return sum(map(_has_failed, self._trials()))

    def needs_search(self, trials: int) -> bool:
        """Whether `trials` leave anything to try or to make sure of."""
        is_exhausted = self.searched >= min(trials, self.work.size)
        return not is_exhausted or self._contender() is not None

    def ask(self, trials: int) -> "Trial | None":
        """The next config: queued ones, the default, its neighbours, then Optuna's.

        Each once where `trials` are enough for all, and None where nothing is left to try.
        Nothing is queued ahead: `ask_again` is given what it queues.
        """
        if not any(trial.state.name == "WAITING" for trial in self._trials()):
            tried = [trial.params for trial in self._trials()]
            near = [self.work.default_fields, *self.work.neighbours()]
            is_small = self.work.size <= trials
            order = near + (self._shuffled() if is_small else [])
            following = next((fields for fields in order if fields not in tried), None)
            if following is not None:
                self.study.enqueue_trial(following)
            elif is_small:
                return None
        return self._ask()

    def ask_again(self) -> "Trial | None":
        """A contender that is to be measured once more; None where all are confirmed."""
        contender = self._contender()
        if contender is None:
            return None
        self.study.enqueue_trial(contender.fields, user_attrs={_AGAIN: True})
        return self._ask()

    def tell(self, trial: "Trial", times: Times) -> None:
        trial.set_user_attr(_MS, times.ms)
        trial.set_user_attr(_DEFAULT_MS, times.default_ms)
        self.study.tell(trial, times.ratio)

    def fail(self, trial: "Trial", reason: str) -> None:
        trial.set_user_attr(_ERROR, reason)
        self._fail(trial.number)

    def give_back(self, trial: "Trial") -> None:
        """To be tried another time: what measured it was interrupted."""
        trial.set_user_attr(_GIVEN_BACK, True)
        self._fail(trial.number)
        self.study.enqueue_trial(trial.params)

    def best(self, subject: Subject) -> Result:
        """The config that is chosen; the default's where nothing was measured, at 0 ms."""
        fields = self.work.default_fields
        nothing = Result(
            kernel=subject.kernel, shape=subject.shape, config=fields, ms=0.0, default_ms=0.0
        )
        return best_result(subject, fields, self._trials()) or nothing

    def _ask(self) -> "Trial":
        trial = self.study.ask(self.distributions)
        trial.set_user_attr(_WORKER, _this_worker())
        return trial

    def _settle(self) -> None:
        """Trials that a killed process left behind are tried again, once: it may be their fault."""
        for trial in self._trials():
            if trial.state.name == "RUNNING" and _is_orphan(trial):
                self._fail(trial.number)
                if trial.params and _SECOND not in trial.user_attrs:
                    self.study.enqueue_trial(trial.params, user_attrs={_SECOND: True})

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)

    def _trials(self) -> "list[FrozenTrial]":
        return self.study.get_trials(deepcopy=False)

    def _shuffled(self) -> list[Fields]:
        """Every config of the space, in random order."""
        names = list(self.work.space)
        every = [dict(zip(names, p, strict=True)) for p in product(*self.work.space.values())]
        return random.sample(every, len(every))

    def _contender(self) -> Score | None:
        """The best config that promises a gain and was not measured often enough."""
        others = [s for s in scores(self._trials()) if s.fields != self.work.default_fields]
        best = sorted(others, key=lambda score: score.ratio)[:CONTENDERS]
        return next((s for s in best if s.count < CONFIRMED and s.ratio <= GAIN), None)


def scores(trials: "Iterable[FrozenTrial]") -> list[Score]:
    """One for each config that was measured."""
    measured: dict[tuple[tuple[str, int], ...], list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state.name == "COMPLETE" and _MS in trial.user_attrs:
            measured.setdefault(tuple(sorted(trial.params.items())), []).append(trial)
    return [_score(dict(fields), found) for fields, found in measured.items()]


def _score(fields: Fields, trials: "list[FrozenTrial]") -> Score:
    ordered = sorted(trials, key=lambda trial: trial.value or 0)
    middle = ordered[(len(ordered) - 1) // 2]
    ms, default_ms = (round(float(middle.user_attrs[name]), 6) for name in (_MS, _DEFAULT_MS))
    return Score(fields, middle.value or 0, ms, default_ms, len(trials))


def best_result(
    subject: Subject, default: Mapping[str, int], trials: "Iterable[FrozenTrial]"
) -> Result | None:
    """The chosen config of a study; None where nothing was measured."""
    found = scores(trials)
    if not found:
        return None
    confirmed = [s for s in found if s.count >= CONFIRMED and s.ratio <= GAIN]
    best = min(confirmed, key=lambda score: score.ratio, default=None)
    default_ms = round(statistics.median(score.default_ms for score in found), 6)
    return Result(
        kernel=subject.kernel,
        shape=subject.shape,
        config=dict(default) if best is None else best.fields,
        ms=default_ms if best is None else best.ms,
        default_ms=default_ms if best is None else best.default_ms,
    )


def default_of(attributes: Mapping[str, Any]) -> Fields:
    """The default's fields, of a study's attributes."""
    return dict(attributes[_DEFAULT])


def _has_failed(trial: "FrozenTrial") -> bool:
    """Whether its config gave no time, for a reason or because processes died with it."""
    if trial.state.name != "FAIL" or _GIVEN_BACK in trial.user_attrs:
        return False
    return _ERROR in trial.user_attrs or _SECOND in trial.user_attrs


def _this_worker() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": platform.node(), "pid": process.pid, "started": process.create_time(),
            "asked": time.time()}  # fmt: skip


def _is_orphan(trial: "FrozenTrial") -> bool:
    """Whether nobody is measuring it any more."""
    worker = trial.user_attrs.get(_WORKER)
    if worker is None:  # between two statements of `_ask`, or killed there
        started = trial.datetime_start
        return started is None or time.time() - started.timestamp() > NAMELESS_S
    if worker["host"] != platform.node():
        return bool(time.time() - worker["asked"] > ORPHAN_S)
    try:
        return bool(psutil.Process(worker["pid"]).create_time() != worker["started"])
    except psutil.NoSuchProcess:
        return True
