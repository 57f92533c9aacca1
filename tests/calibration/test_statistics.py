import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcompiler.calibration import hessians
from lbcompiler.calibration.collect import Statistics, collect
from lbcompiler.calibration.samples import Samples
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.calibration.statistics import CREST_EDGES, InputStatistics, statistics_of
from lbcompiler.errors import ConfigError, InputError
from lbcompiler.frontend import import_model
from lbcompiler.ir import ops
from lbcompiler.passes import OBSERVE
from lbcompiler.pipeline import run
from tests.passes.build import Body, model_of

DRAW = np.random.default_rng(0)
SUM_ERROR = 1e-4  # float32 sums of some thousand squares


def gathered(*batches: np.ndarray, held_back: int = 2) -> InputStatistics:
    k = batches[0].shape[-1]
    statistics = InputStatistics.empty(k, np.zeros((k, k), np.float32))
    for batch in batches:
        statistics.add(batch, None, held_back, np.random.default_rng(0))
    return statistics


def test_extremes_of_every_channel() -> None:
    a, b = (DRAW.standard_normal((2, 5, 32)).astype(np.float32) for _ in range(2))
    found, rows = gathered(a, b), np.concatenate([a, b]).reshape(-1, 32)
    np.testing.assert_array_equal(found.absmax, np.abs(rows).max(0))
    np.testing.assert_array_equal(found.minimum, rows.min(0))
    np.testing.assert_array_equal(found.maximum, rows.max(0))
    first = np.abs(np.concatenate([a, b])[:, 0]).max(0)
    np.testing.assert_array_equal(found.first_absmax, first)
    assert found.rows == 20
    assert int(found.counts[2]) == 4


def test_the_sample_is_held_out_of_the_hessian() -> None:
    x = DRAW.standard_normal((100, 48)).astype(np.float32)
    found = gathered(x, held_back=30)
    assert found.sample.shape == (30, 48)
    chosen = {row.tobytes() for row in found.sample}
    rest = np.array([row for row in x if row.tobytes() not in chosen])
    assert len(rest) == 70
    np.testing.assert_allclose(found.mean_hessian, rest.T @ rest / 70, atol=SUM_ERROR)


def test_a_short_batch_keeps_half_of_its_rows_to_learn_from() -> None:
    assert gathered(np.ones((3, 16), np.float32), held_back=9).sample.shape == (1, 16)


def test_of_rows_that_come_alone_every_eighth_judges() -> None:
    rows = DRAW.standard_normal((50, 1, 16)).astype(np.float32)
    found = gathered(*rows)
    found.end()
    np.testing.assert_array_equal(found.sample, rows[::8, 0])
    assert int(found.counts[1]) == 43
    rest = np.delete(rows[:, 0], np.s_[::8], axis=0)
    np.testing.assert_allclose(found.mean_hessian, rest.T @ rest / 43, atol=SUM_ERROR)


def test_the_only_row_is_learned_from_and_judges() -> None:
    row = DRAW.standard_normal((1, 16)).astype(np.float32)
    found = gathered(row)
    found.end()
    np.testing.assert_array_equal(found.sample, row)
    np.testing.assert_array_equal(found.mean_hessian, row.T @ row)


def test_padding_is_not_seen() -> None:
    x = DRAW.standard_normal((2, 4, 16)).astype(np.float32)
    seen = np.array([[True, True, False, False], [True, True, True, True]])
    x[0, 2:] = 1e6
    statistics = InputStatistics.empty(16)
    statistics.add(x, seen, 1, np.random.default_rng(0))
    assert statistics.rows == 6
    assert statistics.absmax.max() < 100


@pytest.mark.parametrize("block", [16, 32])
def test_crest_factors_are_of_blocks(block: int) -> None:
    x = DRAW.standard_normal((64, 64)).astype(np.float32)
    blocks = x.reshape(-1, block)
    crest = np.abs(blocks).max(1) / np.sqrt(np.square(blocks).mean(1))
    found = gathered(x)
    assert found.crest_factor(block) == pytest.approx(crest.mean(), rel=1e-5)
    i = (16, 32).index(block)
    expected, _ = np.histogram(crest, CREST_EDGES)
    np.testing.assert_array_equal(found.crest[i][1:-1], expected)


def test_kurtosis_of_gaussian_rows_is_near_three() -> None:
    x = DRAW.standard_normal((500, 512)).astype(np.float32)
    assert gathered(x).kurtosis == pytest.approx(3.0, abs=0.1)


def test_zero_blocks_have_no_crest_factor() -> None:
    found = gathered(np.zeros((4, 32), np.float32))
    assert np.isnan(found.crest_factor(32))
    assert found.kurtosis == 0.0


@given(st.integers(1, 3), st.integers(1, 40))
def test_saving_is_naming(batches: int, k: int) -> None:
    found = gathered(*(np.ones((2, 3, k), np.float32) for _ in range(batches)))
    named = {f"g/{name}": array for name, array in found.arrays().items()}
    for name, array in statistics_of(named, "g/").arrays().items():
        np.testing.assert_array_equal(array, found.arrays()[name])


@pytest.fixture(scope="module")
def tiny() -> tuple[Simulator, Samples]:
    model = run(OBSERVE, import_model("models/tiny_lm.onnx", {}))
    ids = np.load("models/tiny_lm_calibration.npz")["input_ids"][:4]
    batches = [{"input_ids": row[None]} for row in ids]
    samples = Samples("four texts", "four texts", len(batches), lambda: iter(batches))
    return Simulator(model), samples


class StoppedError(Exception):
    pass


def same(one: Statistics, other: Statistics) -> bool:
    assert one.keys() == other.keys()
    return all(
        np.array_equal(array, other[name].arrays()[key])
        for name, statistics in one.items()
        for key, array in statistics.arrays().items()
    )


def stopping(at: int) -> Callable[[str, int, int], None]:
    def stop(_stage: str, done: int, _total: int) -> None:
        if done == at:
            raise StoppedError

    return stop


def resumed(simulator: Simulator, samples: Samples, state: State) -> tuple[Statistics, int]:
    """What is gathered, and the first batch that was seen for it."""
    begun: list[int] = []
    found = collect(simulator, samples, state, progress=lambda _s, done, _t: begun.append(done))
    return found, begun[0]


@pytest.fixture(params=["in memory", "in a file"])
def is_mapped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "in a file":
        monkeypatch.setattr(hessians, "SHARE", 0.0)
    return request.param == "in a file"


@pytest.fixture(scope="module")
def whole(tiny: tuple[Simulator, Samples], tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """Gathered in one go, in memory."""
    return collect(*tiny, State.open(tmp_path_factory.mktemp("states") / "whole", {}))


def test_a_pass_that_was_stopped_goes_on(
    tiny: tuple[Simulator, Samples], whole: Statistics, is_mapped: bool, tmp_path: Path
) -> None:
    state = State.open(tmp_path, {})
    with pytest.raises(StoppedError):
        collect(*tiny, state, progress=stopping(2))
    assert state.mapped_file("statistics.hessians").exists() == is_mapped
    found, begun = resumed(*tiny, state)
    assert begun == 2
    assert same(found, whole)
    assert same(collect(*tiny, state, progress=stopping(0)), whole)  # from the folder


def test_a_pass_that_was_stopped_within_a_batch_goes_on(
    tiny: tuple[Simulator, Samples],
    whole: Statistics,
    is_mapped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Just when the Hessian of some group, in the second batch, was added to."""
    state, added, add = State.open(tmp_path, {}), [], np.add

    def stop(*args: Any, **said: Any) -> None:
        add(*args, **said)
        added.append(None)
        if len(added) == len(tiny[0].groups) + 5:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("lbcompiler.calibration.statistics.np.add", stop)
        with pytest.raises(StoppedError):
            collect(*tiny, state)
    found, begun = resumed(*tiny, state)
    assert begun == 1
    assert same(found, whole)


def test_a_pass_that_was_killed_does_not_count_twice(
    tiny: tuple[Simulator, Samples],
    whole: Statistics,
    is_mapped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in order at the second batch, killed at the fourth."""
    state = State.open(tmp_path, {})
    with pytest.raises(StoppedError):
        collect(*tiny, state, progress=stopping(1))
    with monkeypatch.context() as patch:
        patch.setattr(State, "save", lambda *_: None)
        with pytest.raises(StoppedError):
            collect(*tiny, state, progress=stopping(3))
    found, begun = resumed(*tiny, state)
    assert begun == (0 if is_mapped else 1)  # the file is ahead of what was kept
    assert same(found, whole)


def test_a_file_of_hessians_that_was_cut_is_made_again(
    tiny: tuple[Simulator, Samples], whole: Statistics, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(hessians, "SHARE", 0.0)
    state = State.open(tmp_path, {})
    collect(*tiny, state)
    with state.mapped_file("statistics.hessians").open("r+b") as file:
        file.truncate(1000)
    found, begun = resumed(*tiny, state)
    assert begun == 0
    assert same(found, whole)


def test_a_disk_without_room_for_hessians_is_explained(
    tiny: tuple[Simulator, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hessians, "SHARE", 0.0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"GiB.*No space left on device.*--state"):
        collect(*tiny, State.open(tmp_path, {}))
    assert not list(tmp_path.glob("*.hessians"))


def test_without_a_hessian_all_else_is_the_same(
    tiny: tuple[Simulator, Samples], whole: Statistics, tmp_path: Path
) -> None:
    found = collect(*tiny, State.open(tmp_path, {}), with_hessian=False)
    assert {statistics.hessian.size for statistics in found.values()} == {0}
    for name, statistics in found.items():
        statistics.hessian = whole[name].hessian
    assert same(found, whole)


def one_linear(batch: np.ndarray) -> tuple[Simulator, Samples]:
    """A model of one layer, "only", and a batch."""

    def write(body: Body, x: object) -> object:
        return body(ops.dense(x, body.weight("w", 8, batch.shape[-1]), layer=body.layer("only")))

    simulator = Simulator(model_of({"x": ["n", batch.shape[-1]]}, write))
    return simulator, Samples("rows", "rows", 1, lambda: iter([{"x": batch}]))


def test_a_layer_that_sees_no_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows gives layer 'only' nothing to learn from"):
        collect(*one_linear(np.zeros((0, 16), np.float32)), State.open(tmp_path, {}))


def test_data_on_which_the_model_overflows_is_refused(
    tiny: tuple[Simulator, Samples], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator, samples = tiny
    name = simulator.groups[0].layers[0]
    broken = np.full_like(simulator.weight(name), np.nan)
    held = simulator._linears[name].weight
    monkeypatch.setitem(simulator._weights, held, broken)
    with pytest.raises(InputError, match="NaN or infinite"):
        collect(simulator, samples, State.open(tmp_path / "s", {}))
