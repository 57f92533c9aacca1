import json
import os
from pathlib import Path
from typing import Any

import pytest

from lbcompiler.artifact import (
    MANIFEST,
    SCHEMA_VERSION,
    Artifact,
    Manifest,
    SourceRecord,
    TargetRecord,
    Totals,
    file_records,
    new_folder,
    open_artifact,
)
from lbcompiler.errors import ArtifactError


def write_artifact(path: Path) -> Artifact:
    with new_folder(path) as folder:
        (folder / "model.so").write_bytes(b"code")
        (folder / "weights.safetensors").write_bytes(b"weights")
        (folder / "report.json").write_text("{}")
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            created_by={"lbcompiler": "0"},
            source=SourceRecord(path="m.onnx", sha256="", kind="onnx"),
            target=TargetRecord(name="cpu", isa="generic"),
            config={},
            inputs=[],
            outputs=[],
            dims=[],
            states=[],
            layers=[],
            totals=Totals(layers=0, quantized=0, weight_bytes=0, float_bytes=0),
            parameters=[],
            files=file_records(folder),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json())
    return Artifact(path, manifest)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "model.lbc").path


def edit(path: Path, **fields: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, **fields}))


def test_what_is_written_opens(path: Path) -> None:
    assert set(open_artifact(path).manifest.files) == {
        "model.so",
        "weights.safetensors",
        "report.json",
    }


def test_nothing_hidden_is_left_beside_it(path: Path) -> None:
    assert [p.name for p in path.parent.iterdir()] == ["model.lbc"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_fails_halfway_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with new_folder(tmp_path / "model.lbc") as folder:
            (folder / "model.so").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_is_replaced_only_by_force(path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"exists already.*--force"):
        write_artifact(path)
    with new_folder(path, force=True) as folder:
        (folder / "new").write_text("")
    assert [p.name for p in path.iterdir()] == ["new"]


def test_what_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    with (
        pytest.raises(ArtifactError, match=r"is no artifact: it will not be replaced"),
        new_folder(tmp_path / "thesis", force=True),
    ):
        pass


def test_save_copies(path: Path) -> None:
    saved = open_artifact(path).save(path.parent / "deep" / "copy.lbc")
    assert open_artifact(saved.path).manifest == open_artifact(path).manifest


def test_a_temporary_artifact_goes_with_its_object(path: Path) -> None:
    artifact = Artifact(path, open_artifact(path).manifest, temporary=True)
    del artifact
    assert not path.exists()


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no artifact: it has no manifest.json"):
        open_artifact(tmp_path)


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0])
def test_another_schema_says_what_to_do(path: Path, version: int) -> None:
    edit(path, schema_version=version, unknown="field")
    way_out = "upgrade lbcompiler" if version > SCHEMA_VERSION else "compile the model again"
    with pytest.raises(ArtifactError, match=rf"schema {version}.*{way_out}"):
        open_artifact(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", f'{{"schema_version": {SCHEMA_VERSION}}}', "\udcff"]
)
def test_a_broken_manifest(path: Path, text: str) -> None:
    (path / MANIFEST).write_bytes(os.fsencode(text))
    with pytest.raises(ArtifactError, match=r"truncated or altered"):
        open_artifact(path)


def test_a_missing_a_truncated_and_an_altered_file(path: Path) -> None:
    code = path / "model.so"
    code.write_bytes(b"edoc")
    with pytest.raises(ArtifactError, match=r"does not have the hash"):
        open_artifact(path)
    open_artifact(path, verify=False)
    code.write_bytes(b"cod")
    with pytest.raises(ArtifactError, match=r"has 3 bytes, its manifest says 4"):
        open_artifact(path, verify=False)
    code.unlink()
    with pytest.raises(ArtifactError, match=r"lacks model.so"):
        open_artifact(path)


@pytest.mark.parametrize("files", [{}, {"../secret": {"sha256": "", "bytes": 0}}])
def test_a_manifest_that_lists_other_files(path: Path, files: Any) -> None:
    edit(path, files=files)
    with pytest.raises(ArtifactError, match=r"does not list the files of an artifact"):
        open_artifact(path)
