"""Input data: what is read, what is refused, and how samples become runs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lbcompiler.data import ONLY_INPUT, batches, bind, read_array, read_arrays
from lbcompiler.errors import InputError


@dataclass(frozen=True)
class Port:
    name: str
    shape: tuple[int | str, ...]


IDS = Port("input_ids", ("batch", "length"))
MASK = Port("attention_mask", ("batch", "length"))


def test_npz_arrays_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **{"a": np.arange(3), "b/c:0": np.eye(2, dtype=np.float16)})
    found = read_arrays(tmp_path / "d.npz")
    assert sorted(found) == ["a", "b/c:0"]
    assert found["b/c:0"].dtype == np.float16


def test_npy_binds_to_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones((2, 3), np.float32))
    arrays = read_arrays(tmp_path / "d.npy")
    assert list(arrays) == [ONLY_INPUT]
    assert bind(arrays, [IDS], "d.npy")["input_ids"].shape == (2, 3)
    with pytest.raises(InputError, match=r"2 inputs \(input_ids, attention_mask\)"):
        bind(arrays, [IDS, MASK], "d.npy")


def test_folder_of_npy_is_one_file_an_input(tmp_path: Path) -> None:
    np.save(tmp_path / "input_ids.npy", np.ones((2, 3)))
    np.save(tmp_path / "attention_mask.npy", np.zeros((2, 3)))
    assert sorted(read_arrays(tmp_path)) == ["attention_mask", "input_ids"]


def test_folder_of_npz_is_joined_in_order(tmp_path: Path) -> None:
    for index in (2, 0, 1):
        np.savez(tmp_path / f"part{index}.npz", x=np.full((1, 2), index))
    assert read_arrays(tmp_path)["x"].tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"no archive at all", id="garbage"),
        pytest.param(b"", id="empty"),
        pytest.param(b"PK\x03\x04" + b"\0" * 40, id="broken zip"),
        pytest.param(b"\x93NUMPY\x01\0\x10", id="broken header"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"truncated|no NumPy file") as caught:
        read_arrays(path)
    assert str(path) in str(caught.value)


def test_truncated_npz(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.arange(1000))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match="truncated"):
        read_arrays(path)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_python_objects_are_never_unpickled(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    objects = np.array([{"a": 1}, None], dtype=object)
    if suffix == ".npz":
        np.savez(path, x=objects)
    else:
        np.save(path, objects, allow_pickle=True)
    with pytest.raises(InputError, match="Python objects"):
        read_arrays(path)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no data at"):
        read_arrays(tmp_path / "gone.npz")
    with pytest.raises(InputError, match=r"no \.npy or \.npz"):
        read_arrays(tmp_path)
    (tmp_path / "d.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"d\.csv"):
        read_arrays(tmp_path / "d.csv")
    np.savez(tmp_path / "a.npz", x=np.ones(2))
    np.savez(tmp_path / "b.npz", y=np.ones(2))
    with pytest.raises(InputError, match="other arrays"):
        read_arrays(tmp_path)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npz").read_bytes())
    with pytest.raises(InputError, match="archive"):
        read_array(tmp_path / "a.npy")
    np.save(tmp_path / "c.npy", np.ones(2))
    (tmp_path / "c.npz").write_bytes((tmp_path / "c.npy").read_bytes())
    with pytest.raises(InputError, match="bare array"):
        read_arrays(tmp_path / "c.npz")
    with pytest.raises(InputError, match="keep one kind"):
        read_arrays(tmp_path)


def test_folder_parts_that_do_not_join(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((1, 2)))
    np.savez(tmp_path / "b.npz", x=np.ones((1, 3)))
    with pytest.raises(InputError, match="do not join"):
        read_arrays(tmp_path)


def test_missing_input_is_named_beside_what_is_there() -> None:
    with pytest.raises(InputError, match="'attention_mask'; it holds 'input_ids', 'labels'"):
        bind({"input_ids": np.ones(1), "labels": np.ones(1)}, [IDS, MASK], "d.npz")


def sizes(*args: object, **options: int) -> list[int]:
    return [len(feeds["input_ids"]) for feeds in batches(*args, **options)]  # type: ignore[arg-type]


def test_dynamic_batch_runs_a_few_samples_at_a_time() -> None:
    feeds = {"input_ids": np.zeros((10, 5)), "attention_mask": np.ones((10, 5))}
    assert sizes(feeds, [IDS, MASK], "d") == [4, 4, 2]
    assert sizes(feeds, [IDS, MASK], "d", at_once=1) == [1] * 10
    assert sizes(feeds, [IDS, MASK], "d", limit=3) == [3]


def test_fixed_batch_is_kept() -> None:
    port = Port("input_ids", (2, "length"))
    assert sizes({"input_ids": np.zeros((6, 5))}, [port], "d") == [2, 2, 2]
    with pytest.raises(InputError, match="2 samples at a time, d gives 5"):
        sizes({"input_ids": np.zeros((5, 5))}, [port], "d")


def test_an_input_without_the_batch_goes_whole_into_every_run() -> None:
    ports = [Port("input_ids", (1, "length")), Port("mask", (1, 7)), Port("k", ())]
    feeds = {"input_ids": np.zeros((3, 7)), "mask": np.ones((1, 7)), "k": np.array(2)}
    runs = list(batches(feeds, ports, "d"))
    assert [run["input_ids"].shape for run in runs] == [(1, 7)] * 3
    assert all(run["mask"] is feeds["mask"] and run["k"] is feeds["k"] for run in runs)


def test_batches_of_another_dimension_name_are_cut_alike() -> None:
    ports = [Port("input_ids", ("a", "s")), Port("mask", ("b", "s"))]
    runs = list(batches({"input_ids": np.zeros((6, 7)), "mask": np.ones((6, 7))}, ports, "d"))
    assert [run["mask"].shape for run in runs] == [(4, 7), (2, 7)]


def test_refusals_of_shapes() -> None:
    with pytest.raises(InputError, match="'input_ids' has 4, 'attention_mask' has 3"):
        sizes({"input_ids": np.zeros((4, 5)), "attention_mask": np.ones((3, 5))}, [IDS, MASK], "d")
    with pytest.raises(InputError, match=r"2 dimensions \(batchxlength\)"):
        sizes({"input_ids": np.zeros(5)}, [IDS], "d")
    with pytest.raises(InputError, match="has 0"):
        sizes({"input_ids": np.zeros((0, 5))}, [IDS], "d")
