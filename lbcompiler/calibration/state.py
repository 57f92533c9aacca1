"""The state folder: what was measured, so that an interrupted run goes on and a second one need not
measure again.

    state.json                 of which model, data and version it is
    NAME.safetensors / .json   results, each written whole or not at all
    NAME.hessians              parts of NAME.safetensors that are mapped into memory

A folder of another model or version is refused, never mixed up or overwritten."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lbcompiler.errors import ArtifactError
from lbcompiler.files import appearing
from lbcompiler.ir.model import Array

STATE = "state.json"
SCHEMA = 4  # raised where what was kept would be measured otherwise now

_OTHERS = {"inputs": "other input shapes", "schema": "another version of what is measured"}


@dataclass(frozen=True)
class State:
    """A folder of results by name; names may have slashes."""

    path: Path

    @classmethod
    def open(cls, path: Path, identity: Mapping[str, Any]) -> "State":
        """The folder at `path`, made if it is not there. Raises ArtifactError when it belongs to
        something else than `identity` (the model's hash, the data's, what was asked).
        """
        said = {"schema": SCHEMA, "lbcompiler": version("lbcompiler"), **identity}
        file = path / STATE
        if not file.exists():
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise ArtifactError(f"{path} is no state folder (it has no {STATE}): name another")
            path.mkdir(parents=True, exist_ok=True)
            with appearing(file) as partial:
                partial.write_text(json.dumps(said, indent=2) + "\n")
            return cls(path)
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"cannot read {file}: {error}; remove the folder {path}") from None
        other = next((key for key in said if found.get(key) != said[key]), None)
        if other is not None:
            raise ArtifactError(
                f"the state folder {path} is of {_OTHERS.get(other, f'another {other}')} "
                f"({found.get(other)!r}, now {said[other]!r}): name another with --state, or "
                "remove it to measure anew"
            )
        return cls(path)

    def load(self, name: str) -> dict[str, Array] | None:
        """Arrays that were kept; None where there are none. A damaged file counts as none."""
        file = self._file(name, ".safetensors")
        try:
            return load_file(file) if file.exists() else None
        except (SafetensorError, OSError, ValueError):
            return None

    def save(self, name: str, arrays: Mapping[str, Array]) -> None:
        file = self._file(name, ".safetensors")
        file.parent.mkdir(parents=True, exist_ok=True)
        with appearing(file) as partial:
            save_file({key: np.ascontiguousarray(a) for key, a in arrays.items()}, partial)

    def mapped_file(self, name: str) -> Path:
        """Numbers that are written in place; a result beside them says what they are worth."""
        return self._file(name, "")

    def remove(self, name: str) -> None:
        self._file(name, ".safetensors").unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        """All that was kept under `name/`."""
        if (folder := self.path / name).is_dir():
            shutil.rmtree(folder)

    def load_record(self, name: str) -> Any:
        """What was kept as JSON; None where there is nothing."""
        file = self._file(name, ".json")
        try:
            return json.loads(file.read_text()) if file.exists() else None
        except (OSError, ValueError):
            return None

    def save_record(self, name: str, record: Any) -> None:
        file = self._file(name, ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        with appearing(file) as partial:
            partial.write_text(json.dumps(record) + "\n")

    def _file(self, name: str, suffix: str) -> Path:
        return self.path / f"{name}{suffix}"
