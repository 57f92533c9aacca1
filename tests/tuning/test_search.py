"""What is tried, in which order, and what comes out."""

from collections import Counter
from pathlib import Path

import pytest

from lbcompiler.pipeline import silent
from lbcompiler.tuning import study as study_module
from lbcompiler.tuning.database import open_database
from lbcompiler.tuning.search import Limits, search
from lbcompiler.tuning.study import CONFIRMED, TuningStudy
from lbcompiler.tuning.work import Work
from tests.tuning.stand_in import LARGE, SMALL, StandIn, refuses, subject


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "tuning.db"


def study_of(work: Work, database: Path) -> TuningStudy:
    return TuningStudy(open_database(database), work, subject(work))


def test_a_small_space_is_tried_whole_and_the_best_confirmed(database: Path) -> None:
    bench = StandIn(lambda config: 1 - config.small_columns / 100)
    study = study_of(SMALL, database)
    search(study, bench, Limits(), silent)
    counts = Counter(config.small_columns for config in bench.seen)
    assert set(counts) == set(SMALL.space["small_columns"])
    assert bench.seen[0] == SMALL.default
    best = study.best(subject(SMALL))
    assert best.config == {"small_columns": max(counts)}
    assert counts[max(counts)] == CONFIRMED
    assert best.ms < best.default_ms == 2
    assert study.searched == SMALL.size
    assert not study.needs_search(60)


def test_neighbours_of_the_default_go_first_and_trials_are_a_limit(database: Path) -> None:
    bench = StandIn(lambda config: 1.0)
    study = study_of(LARGE, database)
    search(study, bench, Limits(trials=12), silent)
    near = [LARGE.config(fields) for fields in LARGE.neighbours()]
    assert bench.seen[: 1 + len(near)] == [LARGE.default, *near]
    assert len(bench.seen) == 12
    assert study.best(subject(LARGE)).config == LARGE.default_fields


def test_after_the_last_trial_only_the_best_are_measured_again(database: Path) -> None:
    bench = StandIn(lambda config: 1.0 if config == LARGE.default else 0.5)
    study = study_of(LARGE, database)
    search(study, bench, Limits(trials=2), silent)
    assert study.searched == 2  # though more neighbours of the default were to come
    assert Counter(bench.seen)[LARGE.config(LARGE.neighbours()[0])] == CONFIRMED
    assert len(bench.seen) == 1 + CONFIRMED


@pytest.mark.parametrize("ratio", [0.99, 1.0, 1.3])
def test_what_gains_too_little_leaves_the_default(database: Path, ratio: float) -> None:
    bench = StandIn(lambda config: 1.0 if config == SMALL.default else ratio)
    study = study_of(SMALL, database)
    search(study, bench, Limits(), silent)
    assert study.best(subject(SMALL)).config == SMALL.default_fields


def test_one_lucky_measurement_is_not_believed(database: Path) -> None:
    times = Counter[int]()

    def ratio(config):
        times[config.small_columns] += 1
        return 0.5 if config.small_columns == 2 and times[2] == 1 else 1.1

    study = study_of(SMALL, database)
    search(study, StandIn(ratio), Limits(), silent)
    assert times[2] == CONFIRMED
    assert study.best(subject(SMALL)).config == SMALL.default_fields


def test_candidates_that_fail_are_counted_and_not_tried_again(database: Path) -> None:
    study = study_of(SMALL, database)
    bench = StandIn(refuses)
    search(study, bench, Limits(), silent)
    assert study.failed == study.searched == SMALL.size == len(bench.seen)
    assert study.best(subject(SMALL)).ms == 0
    search(study_of(SMALL, database), bench, Limits(), silent)
    assert len(bench.seen) == SMALL.size


def test_a_batch_is_built_at_once_and_timed_one_by_one(database: Path) -> None:
    bench = StandIn(lambda config: 1.0)
    search(study_of(LARGE, database), bench, Limits(trials=5, jobs=3), silent)
    assert [len(batch) for batch in bench.built] == [3, 2]


def test_time_is_a_limit(database: Path) -> None:
    study = study_of(LARGE, database)
    search(study, StandIn(lambda config: 0.5), Limits(seconds=0), silent)
    assert study.searched == 0


def test_an_interrupted_search_goes_on_where_it_was(database: Path) -> None:
    seen = []

    def ratio(config):
        seen.append(config)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return 1.0

    study = study_of(LARGE, database)
    with pytest.raises(KeyboardInterrupt):
        search(study, StandIn(ratio), Limits(trials=8, jobs=2), silent)
    assert study.searched == 3
    bench = StandIn(lambda config: 1.0)
    again = study_of(LARGE, database)
    search(again, bench, Limits(trials=8), silent)
    assert again.searched == 8
    assert len(bench.seen) == 5
    assert seen[3] in bench.seen  # what was interrupted


def test_what_its_process_dies_of_is_tried_twice(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "_is_orphan", lambda trial: True)
    asked = Counter[int]()
    while trial := study_of(SMALL, database).ask(60):
        asked[trial.params["small_columns"]] += 1
        assert asked.total() < 100
    assert set(asked.values()) == {2}
    study = study_of(SMALL, database)
    assert study.failed == study.searched == SMALL.size


def test_another_default_is_another_study(database: Path) -> None:
    from dataclasses import replace

    search(study_of(SMALL, database), StandIn(lambda config: 1.0), Limits(), silent)
    other = replace(SMALL, default=replace(SMALL.default, small_columns=2))
    assert study_of(other, database).searched == 0
