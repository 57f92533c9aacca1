from pathlib import Path

import numpy as np
import pytest

from lbcompiler.calibration.state import State
from lbcompiler.errors import ArtifactError


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    state = State.open(tmp_path / "s", {"model": "a"})
    state.save("x/y", {"a": np.arange(6).reshape(2, 3)[:, ::2]})
    state.save_record("x/r", {"kl": None})
    again = State.open(tmp_path / "s", {"model": "a"})
    np.testing.assert_array_equal((again.load("x/y") or {})["a"], [[0, 2], [3, 5]])
    assert again.load_record("x/r") == {"kl": None}
    assert again.load("x/z") is None
    assert again.load_record("z") is None


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    State.open(tmp_path / "s", {"model": "a"})
    with pytest.raises(ArtifactError, match=r"another model.*--state"):
        State.open(tmp_path / "s", {"model": "b"})


def test_a_folder_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    State.open(tmp_path / "s", {"model": "a"})
    monkeypatch.setattr("lbcompiler.calibration.state.version", lambda _: "99.0")
    with pytest.raises(ArtifactError, match=r"another lbcompiler.*99\.0.*--state"):
        State.open(tmp_path / "s", {"model": "a"})


def test_a_folder_that_is_none_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="no state folder"):
        State.open(tmp_path, {})


def test_a_damaged_result_counts_as_none(tmp_path: Path) -> None:
    state = State.open(tmp_path / "s", {})
    state.save("a", {"a": np.zeros(100)})
    state.save_record("b", [1])
    for name in ("a.safetensors", "b.json"):
        file = tmp_path / "s" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert state.load("a") is None
    assert state.load_record("b") is None


def test_a_damaged_identity_is_explained(tmp_path: Path) -> None:
    State.open(tmp_path / "s", {})
    (tmp_path / "s" / "state.json").write_text("{")
    with pytest.raises(ArtifactError, match="remove the folder"):
        State.open(tmp_path / "s", {})
