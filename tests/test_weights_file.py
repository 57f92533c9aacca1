from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lbcompiler.errors import ArtifactError
from lbcompiler.ir.model import Weight
from lbcompiler.weights_file import ALIGNMENT, NAMES, map_weights, write_weights

ARRAYS = {
    "odd": np.arange(13, dtype=np.uint8),
    "scalar": np.float32(2.5).reshape(()),
    "a/b.c": np.arange(12, dtype=np.float32).reshape(3, 4),
    "empty": np.zeros((0, 4), np.int64),
    "flags": np.array([True, False]),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    write_weights(path, {n: Weight.of(a) for n, a in ARRAYS.items()}, lambda done, total: None)
    return path


def test_what_is_written_is_mapped(written: Path) -> None:
    mapped = map_weights(written)
    assert list(mapped) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name], array)


def test_the_safetensors_library_reads_the_file(written: Path) -> None:
    loaded = load_file(written)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_every_weight_starts_aligned(written: Path) -> None:
    for array in map_weights(written).values():
        assert array.size == 0 or array.ctypes.data % ALIGNMENT == 0


@pytest.mark.parametrize("dtype", NAMES)
def test_every_dtype_survives(dtype: str, tmp_path: Path) -> None:
    array = np.arange(5).astype(dtype)
    write_weights(tmp_path / "w", {"x": Weight.of(array)}, lambda done, total: None)
    np.testing.assert_array_equal(map_weights(tmp_path / "w")["x"], array)
    np.testing.assert_array_equal(load_file(tmp_path / "w")["x"], array)


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    weights = {n: Weight.of(a) for n, a in ARRAYS.items()}
    write_weights(tmp_path / "w", weights, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert seen == sorted(seen)


def test_one_weight_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.append(-1)

    def load() -> np.ndarray:
        alive.append(1)
        assert sum(alive) <= 2  # the one being written and the one that just came
        return np.zeros(4, np.uint8).view(Counted)

    weights = {f"w{i}": Weight((4,), "uint8", load) for i in range(8)}
    write_weights(tmp_path / "w", weights, lambda done, total: None)


@pytest.mark.parametrize("keep", [0, 4, 30, 200])
def test_a_truncated_file_is_an_error(written: Path, keep: int) -> None:
    written.write_bytes(written.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"no readable weight file"):
        map_weights(written)


def test_a_header_that_points_outside_is_an_error(written: Path) -> None:
    data = written.read_bytes()
    written.write_bytes(data.replace(b'"data_offsets":[0,13]', b'"data_offsets":[0,9E9]', 1))
    with pytest.raises(ArtifactError):
        map_weights(written)


def test_a_weight_that_breaks_its_promise_stops_the_writing(tmp_path: Path) -> None:
    liar = Weight((4,), "uint8", lambda: np.zeros(5, np.uint8))
    with pytest.raises(AssertionError, match=r"'x' promised uint8 \(4,\)"):
        write_weights(tmp_path / "w", {"x": liar}, lambda done, total: None)
