"""The whole flow around a bench that times nothing."""

from pathlib import Path
from typing import Any

import pytest

import lbcompiler
from lbcompiler.config import CompileConfig
from lbcompiler.errors import ConfigError
from lbcompiler.targets.cpu.processor import processor
from lbcompiler.tuning.database import versions
from lbcompiler.tuning.results import read_results
from lbcompiler.tuning.search import Limits
from lbcompiler.tuning.study import TuningStudy
from lbcompiler.tuning.tuner import Outcome, open_tuner, work_for
from lbcompiler.tuning.work import parse_shape
from tests.tuning.stand_in import SMALL, StandIn, subject

CONFIG = CompileConfig(format="nvfp4")


def outcomes(database: Path, shapes: list[Any], ratio: Any, **limits: Any) -> list[Outcome]:
    def bench(*_: object) -> StandIn:
        return StandIn(ratio)

    with open_tuner("cpu", database, make_bench=bench) as tuner:
        work = work_for(tuner, CONFIG, shapes=shapes)
        return list(tuner.run(work, Limits(**limits)))


def fastest(config: Any) -> float:
    return 0.5 if config.small_columns == 2 or config.few_columns == 3 else 1.0


def test_results_say_what_is_kept(tmp_path: Path) -> None:
    shapes = [(1, 64, 64), (1, 64, 64), (3, 64, 100)]
    found = outcomes(tmp_path / "t.db", shapes, fastest)
    assert [(o.shape, o.config, o.ms, o.default_ms) for o in found] == [
        ((1, 64, 64), {"small_columns": 2}, 1.0, 2.0),
        ((3, 64, 100), {"few_columns": 3}, 1.0, 2.0),
    ]
    assert {o.shape_class for o in found} == {"one k64 n64", "few k64 n128"}
    assert read_results(tmp_path / "t.db", "cpu").count == 2


def test_what_is_done_is_not_measured_again(tmp_path: Path) -> None:
    def unexpected(_: Any) -> float:
        raise AssertionError("measured again")

    first = outcomes(tmp_path / "t.db", [(1, 64, 64)], fastest)
    assert outcomes(tmp_path / "t.db", [(1, 64, 64)], unexpected) == first


def test_an_interruption_gives_what_there_is_first(tmp_path: Path) -> None:
    seen: list[Any] = []

    def ratio(config: Any) -> float:
        seen.append(config)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return 1.0

    with open_tuner("cpu", tmp_path / "t.db", make_bench=lambda *_: StandIn(ratio)) as tuner:
        running = tuner.run(work_for(tuner, CONFIG, shapes=[(1, 64, 64)]), Limits())
        assert next(running).trials == 2
        with pytest.raises(KeyboardInterrupt):
            next(running)


def test_other_versions_are_counted(tmp_path: Path) -> None:
    outcomes(tmp_path / "t.db", [(1, 64, 64)], fastest)
    with open_tuner("cpu", tmp_path / "t.db") as tuner:
        assert tuner.other_versions() == 0
        old = subject(SMALL, versions={**versions(), "apache-tvm": "0.1"}, processor=processor())
        study = TuningStudy(tuner.storage, SMALL, old)
        trial = study.ask(1)
        assert trial is not None
        study.tell(trial, StandIn(lambda _: 1.0).compare(SMALL.default))
        assert tuner.other_versions() == 1


@pytest.mark.parametrize("text", ["", "4", "4x4", "4x4x4x4", "0x4x4", "ax4x4", "4x-4x4"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is not MxKxN"):
        parse_shape(text)


def test_tune_really_measures(tmp_path: Path) -> None:
    found = lbcompiler.tune(
        shapes=[(16, 64, 48)], format="mxfp4", act_format="none", trials=2, db=tmp_path / "t.db"
    )
    assert [(o.trials, o.failed) for o in found] == [(2, 0)]
    assert found[0].ms > 0
