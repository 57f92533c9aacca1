from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lbcompiler.calibration.samples import Samples, held_out, read_samples
from lbcompiler.errors import InputError
from lbcompiler.ir.model import Dim, Port

IDS = (Port("input_ids", "int64", ("batch", "length")),)
DIMS = (Dim("batch"), Dim("length", 1, 48))
IMAGE = (Port("x", "float32", (1, 3, 8, 8)),)


def feeds() -> Iterator[dict[str, np.ndarray]]:
    """What tests name as module:function."""
    for i in range(5):
        yield {"input_ids": np.full((1, 4), i)}


def saved(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def test_small_samples_go_together(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.npz", input_ids=np.zeros((9, 200), np.int64))
    found = read_samples(path, IDS, DIMS)
    assert [len(b["input_ids"]) for b in found] == [2, 2, 2, 2, 1]
    assert found.count == 5
    assert read_samples(path, IDS, DIMS, limit=3).count == 3


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (2, 2), (16, 8), (17, 6), (400, 10)])
def test_small_samples_leave_batches_to_judge_by(tmp_path: Path, count: int, batches: int) -> None:
    path = saved(tmp_path / "c.npz", input_ids=np.zeros((count, 12), np.int64))
    assert read_samples(path, IDS, DIMS).count == batches


def test_the_fingerprint_is_of_the_numbers(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path / f"{i}.npz", input_ids=np.full((2, 8), i // 2, np.int64)) for i in range(3)
    ]
    first, same, other = (read_samples(p, IDS, DIMS).fingerprint for p in paths)
    assert first == same
    assert first != other


def test_what_is_iterated_has_a_fingerprint_of_its_numbers() -> None:
    named = "tests.calibration.test_samples:feeds"
    whole = read_samples(named, IDS, DIMS)
    same, fewer = read_samples(feeds(), IDS, DIMS), read_samples(named, IDS, DIMS, limit=3)
    other = read_samples([{"input_ids": np.full((1, 4), 9)}] * 5, IDS, DIMS)
    assert (whole.count, fewer.count) == (5, 3)
    assert whole.fingerprint == same.fingerprint
    assert len({whole.fingerprint, fewer.fingerprint, other.fingerprint}) == 3


def test_a_function_yields_batches() -> None:
    found = read_samples("tests.calibration.test_samples:feeds", IDS, DIMS)
    assert [int(b["input_ids"][0, 0]) for b in found] == [0, 1, 2, 3, 4]
    assert [int(b["input_ids"][0, 0]) for b in found] == [0, 1, 2, 3, 4]  # once more


CALLS: list[int] = []


def counted() -> Iterator[dict[str, np.ndarray]]:
    CALLS.append(0)
    for i in range(3):
        CALLS[-1] += 1
        yield {"input_ids": np.full((1, 4), i)}


def test_a_function_is_called_for_each_pass_and_not_held() -> None:
    CALLS.clear()
    found = read_samples("tests.calibration.test_samples:counted", IDS, DIMS)
    next(iter(found))
    assert len(list(found)) == 3
    assert CALLS == [3, 1, 3]


def shrinking() -> Iterator[dict[str, np.ndarray]]:
    CALLS.append(0)
    return iter([{"input_ids": np.zeros((1, 4), int)}] * (4 - len(CALLS)))


def drifting() -> Iterator[dict[str, np.ndarray]]:
    CALLS.append(0)
    return iter([{"input_ids": np.full((1, 4), len(CALLS))}])


@pytest.mark.parametrize("function", ["shrinking", "drifting"])
def test_a_function_that_yields_other_data_is_refused(function: str) -> None:
    CALLS.clear()
    found = read_samples(f"tests.calibration.test_samples:{function}", IDS, DIMS)
    with pytest.raises(InputError, match=r"yields other data.*seed"):
        list(found)


def test_an_iterator_is_gone_through_once_and_held() -> None:
    found = read_samples(feeds(), IDS, DIMS, limit=3)
    assert len(list(found)) == len(list(found)) == 3


def test_random_data_fits_the_model() -> None:
    found = read_samples("random", IDS, DIMS, indexed={"input_ids": 7})
    batches = list(found)
    assert len(batches) == found.count == 16
    ids = np.concatenate([b["input_ids"] for b in batches])
    assert ids.shape == (16, 48)
    assert (ids.min(), ids.max()) == (0, 6)
    (image,) = read_samples("random", IMAGE, (), limit=1)
    assert image["x"].shape == (1, 3, 8, 8)
    np.testing.assert_array_equal(image["x"], next(iter(read_samples("random", IMAGE, ())))["x"])


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((1, 3, 8, 8), np.nan, np.float32), "NaN"),
        (np.zeros((3, 8, 8), np.float32), "4 dimensions"),
        (np.zeros((1, 3, 8, 9), np.float32), "1x3x8x8"),
        (np.zeros((1, 3, 8, 8), complex), "complex"),
        (np.zeros((0, 3, 8, 8), np.float32), "samples"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, array: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_samples(saved(tmp_path / "c.npz", x=array), IMAGE, ())


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.npz", y=np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="'x'"):
        read_samples(path, IMAGE, ())


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("nowhere.npz", "there is no data"),
        ("tests.calibration.test_samples:nothing", "nothing"),
        ("no_such_module:feeds", "no_such_module"),
        ("tests.calibration.test_samples:IDS", "is no function"),
    ],
)
def test_a_wrong_name_of_data_is_explained(said: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        list(read_samples(said, IDS, DIMS))


def test_what_an_iterator_gives_is_checked() -> None:
    with pytest.raises(InputError, match="not a mapping"):
        list(read_samples(iter([np.zeros(3)]), IDS, DIMS))
    with pytest.raises(InputError, match="no calibration data"):
        list(read_samples(iter([]), IDS, DIMS))


def numbered(count: int) -> Samples:
    batches = [{"x": np.array([i])} for i in range(count)]
    return Samples("n", "n", count, lambda: iter(batches))


@pytest.mark.filterwarnings("ignore::lbcompiler.errors.LbcWarning")  # of one batch
@pytest.mark.parametrize(("count", "judging"), [(1, [0]), (2, [1]), (7, [6]), (17, [7, 15])])
def test_some_batches_judge(count: int, judging: list[int]) -> None:
    learn, judge = held_out(numbered(count))
    held = [int(b["x"][0]) for b in judge]
    assert held == judging
    assert judge.count == len(judging)
    if count > 1:
        assert [int(b["x"][0]) for b in learn] == [i for i in range(count) if i not in judging]
