"""Jobs here and on local clusters: the same decisions, a death that is told, nothing lost."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

import lbcompiler
from lbcompiler.artifact import Artifact, LayerRecord
from lbcompiler.calibration.state import State
from lbcompiler.decisions.candidate_store import CandidateStore, make_candidates
from lbcompiler.decisions.candidates import GroupProblem, Options
from lbcompiler.decisions.jobs import BACKENDS, completed
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.pipeline import silent

MODEL, CALIBRATION = "models/tiny_lm.onnx", "models/tiny_lm_calibration.npz"
GROUPS = tuple(f"layer {i}" for i in range(6))
DEADLY = GROUPS[4]
DEATH = 13  # exit code
LAST_BITS = 1e-3  # of an error: sums in another order, which may turn a code or two
NAMES = ("nvfp4", "mxint8")
FORMATS = [(name, name) for name in NAMES]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend, with a cluster of two workers that the process is connected to."""
    if request.param == "ray":
        ray = pytest.importorskip("ray")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config={"worker_niceness": 0},  # else other tests come before its workers
        )
        yield request.param
        ray.shutdown()
    elif request.param == "dask":
        distributed = pytest.importorskip("distributed")
        once = {"distributed.scheduler.allowed-failures": 0}  # a worker that died is the last
        with (
            pytest.importorskip("dask").config.set(once),
            distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None),
        ):
            yield request.param
    else:
        yield request.param


def compiled(backend: str) -> Artifact:
    return lbcompiler.compile(
        MODEL,
        "cpu",
        formats=("nvfp4", "nvint4", "mxint8"),
        effective_bits=6.0,
        quantizer="mr_gptq",
        sensitivity="output",
        include=r"layers\.[01]\..*(query|key|value|output|gate|up|down)$",
        calibration_data=CALIBRATION,
        calibration_samples=8,
        work=Work(jobs=2, backend=backend),
    )


@pytest.fixture(scope="module")
def here() -> Artifact:
    return compiled("loky")


@pytest.mark.usefixtures("no_code")
@pytest.mark.parametrize("backend", ["ray", "dask"], indirect=True)
def test_a_cluster_decides_as_this_machine_does(backend: str, here: Artifact) -> None:
    there = compiled(backend).manifest
    assert list(map(decision, there.layers)) == list(map(decision, here.manifest.layers))
    assert there.effective_bits == here.manifest.effective_bits


def decision(layer: LayerRecord) -> tuple[object, ...]:
    """Without the errors in its reason: sums in numpy differ in their last bits by where arrays
    happen to lie.
    """
    rules = layer.scale_rule, layer.activation_scale_rule
    return layer.name, layer.realized, layer.quantizer, layer.hadamard, *rules


class DeadlyProblem(GroupProblem):
    """Ends the process that looks at it."""

    @cached_property
    def outputs(self) -> list[np.ndarray]:
        os._exit(DEATH)


def problem(group: str, kind: type[GroupProblem] = GroupProblem) -> GroupProblem:
    draw = np.random.default_rng(GROUPS.index(group))
    x = draw.standard_normal((256, 64)).astype(np.float32)
    weight = draw.standard_normal((32, 64)).astype(np.float32)
    return kind((weight,), x.T @ x / np.float32(len(x)), x[:32])


def candidates(store: CandidateStore, backend: str, ask, jobs: int):
    options = Options(quantizer="gptq")
    return make_candidates(ask, GROUPS, FORMATS, options, store, jobs, backend, silent)


def test_a_worker_that_dies_is_told_and_nothing_is_lost(backend: str, tmp_path: Path) -> None:
    store = CandidateStore(State.open(tmp_path / "state", {}), "candidates")
    # one at a time, so that those before the deadly one are surely done; but loky's one is this
    # process, and of its two one may have died before the other was there
    jobs, sure = (2, 1) if backend == "loky" else (1, GROUPS.index(DEADLY))
    with pytest.raises(ConfigError, match=r"worker process died.*state; run again"):
        candidates(
            store,
            backend,
            lambda group: problem(group, DeadlyProblem if group == DEADLY else GroupProblem),
            jobs,
        )
    kept = [group for group in GROUPS if store.load(group, NAMES) is not None]
    assert len(kept) >= sure
    assert DEADLY not in kept
    asked: list[str] = []

    def ask(group: str) -> GroupProblem:
        asked.append(group)
        return problem(group)

    found = candidates(store, backend, ask, jobs)
    assert set(asked) == set(GROUPS) - set(kept)
    whole = CandidateStore(State.open(tmp_path / "whole", {}), "candidates")
    for group, expected in candidates(whole, "loky", problem, 1).items():
        assert [s.choice for s in found[group]] == [s.choice for s in expected]
        errors = [s.error for s in expected]
        assert [s.error for s in found[group]] == pytest.approx(errors, rel=LAST_BITS)


def root(number: int) -> float:
    if number < 0:
        raise ConfigError(f"{number} has no root")
    return float(np.sqrt(number))


def test_results_come_from_all_jobs(backend: str) -> None:
    assert sorted(completed(backend, None, root, ((n * n,) for n in range(9)))) == list(range(9))


def test_what_a_job_raises_comes_as_it_was(backend: str) -> None:
    with pytest.raises(ConfigError, match=r"^-1 has no root$"):
        list(completed(backend, 2, root, ((n,) for n in (4, 1, -1, 9))))


def test_arguments_are_asked_for_when_there_is_room(backend: str) -> None:
    asked: list[int] = []

    def numbers() -> Iterator[tuple[int]]:
        for n in range(20):
            asked.append(n)
            yield (n,)

    results = completed(backend, 2, root, numbers())
    next(results)
    assert len(asked) <= 2 * 2 + 1
    results.close()


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_a_backend_that_is_not_installed_says_how(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"ray": "ray", "dask": "distributed"}[name]
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ConfigError, match=rf"pip install 'lbcompiler\[{name}\]'"):
        list(completed(name, 1, root, iter([(1,)])))
