"""The artifact: a folder `model.lbc/` with code, packed weights and a manifest of what every layer
became.

It appears by one rename, whole or not at all; opening it checks the schema and the hash of every
file. The file format is described in docs/artifact.md."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lbcompiler.errors import ArtifactError
from lbcompiler.files import umask, unfinished

if TYPE_CHECKING:
    from lbcompiler.runtime import Program

SCHEMA_VERSION = 3
MANIFEST, CODE, WEIGHTS, REPORT = "manifest.json", "model.so", "weights.safetensors", "report.json"

JUDGED = {"residual": "residual stream", "smoothing": "smoothing", "gate": "whole model"}


def judged(found: Any) -> dict[str, str]:
    """What a manifest or an analysis says that was decided by the model's output as a whole, by
    what people call it.
    """
    return {called: why for name, called in JUDGED.items() if (why := getattr(found, name))}


def kernels_file(isa: str) -> str:
    """What a device runs, where it is not the processor."""
    return f"kernels.{isa}.safetensors"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceRecord(Record):
    """The model that was compiled: its file, sha256 of that file ("" for one in memory), onnx or
    torch.
    """

    path: str
    sha256: str
    kind: Literal["onnx", "torch"]


class TargetRecord(Record):
    name: str
    isa: str


class PortRecord(Record):
    """An input or output; a string in `shape` is a dynamic dimension."""

    name: str
    dtype: str
    shape: list[int | str]


class DimRecord(Record):
    name: str
    low: int
    high: int | None


class StateRecord(Record):
    """An input that an output continues in the same memory: see docs/artifact.md."""

    input: str
    output: str
    axis: int
    past: str
    rows: int | str


class LayerRecord(Record):
    """What became of one linear, convolution or matmul: see docs/artifact.md for every field."""

    name: str
    op: str
    shape: list[int]
    requested: str
    realized: str
    weight_format: str
    weight_scaled: bool = False
    activation_format: str
    quantizer: str = "rtn"
    scale_rule: str
    activation_scale_rule: str
    hadamard: int = 0
    hadamard_seed: int | None = None
    hadamard_folded: bool = False
    smoothing: str = ""
    outliers: int = 0
    epilogue: str
    kernel: str
    config: dict[str, int]
    config_source: str
    reason: str
    output: str
    output_has_bias: bool
    output_missing: str = ""
    bias: bool
    weights: list[str]


class FileRecord(Record):
    sha256: str
    bytes: int


class Totals(Record):
    """Counts over layers, and bytes of the layers' packed weights against the same in float32."""

    layers: int
    quantized: int
    weight_bytes: int
    float_bytes: int


class ParetoRecord(Record):
    """A plan that was measured: kl in nats a token, None where no output is logits; plan: the
    format of each layer that was decided; split: those whose outliers are split off.
    """

    effective_bits: float
    kl: float | None
    qsnr_db: float
    plan: dict[str, str]
    split: list[str] = []


class TuningRecord(Record):
    """What `--tuning-db` gave: results it holds for the kernels' versions and for others, and
    layers that use it.
    """

    database: str
    results: int
    other_versions: int
    layers: int


class KernelRecord(Record):
    """What a kernel of a GPU takes: see docs/artifact.md."""

    name: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int
    occupancy: float


class LayerProgram(Record):
    """What runs of a layer on one more architecture."""

    kernel: str
    config: dict[str, int]
    config_source: str
    weights: list[str]


class ProgramRecord(Record):
    """The same model's code for one more architecture, and what differs with it; `layers` are in
    the order of the manifest's.
    """

    isa: str
    layers: list[LayerProgram]
    parameters: list[str]


class Manifest(Record):
    schema_version: int
    created_by: dict[str, str]
    source: SourceRecord
    target: TargetRecord
    config: dict[str, Any]
    inputs: list[PortRecord]
    outputs: list[PortRecord]
    dims: list[DimRecord]
    states: list[StateRecord]
    layers: list[LayerRecord]
    tuning: TuningRecord | None = None
    effective_bits: float | None = None
    residual: str = ""
    smoothing: str = ""
    gate: str = ""
    pareto: list[ParetoRecord] = []
    totals: Totals
    parameters: list[str]
    programs: list[ProgramRecord] = []
    kernels: list[KernelRecord] = []
    files: dict[str, FileRecord]

    @property
    def pasts(self) -> list[str]:
        """The dimensions that states grow along, in the order in which the code takes them."""
        return list(dict.fromkeys(state.past for state in self.states))

    @property
    def judged(self) -> dict[str, str]:
        """What was decided by the model's output as a whole, and what was measured of it."""
        return judged(self)

    @property
    def isas(self) -> list[str]:
        """The instruction sets or architectures that there is code for."""
        return [self.target.isa, *(program.isa for program in self.programs)]

    def program(self, isa: str) -> Manifest:
        """The manifest as if it were that architecture's alone."""
        if isa == self.target.isa:
            return self
        program = next(program for program in self.programs if program.isa == isa)
        layers = [
            layer.model_copy(update=dict(own))
            for layer, own in zip(self.layers, program.layers, strict=True)
        ]
        target = TargetRecord(name=self.target.name, isa=isa)
        changed = {"target": target, "layers": layers, "parameters": program.parameters}
        return self.model_copy(update=changed)

    def code_file(self, isa: str) -> str:
        return CODE if isa == self.target.isa else f"model.{isa}.so"

    @property
    def expected_files(self) -> set[str]:
        """What an artifact holds beside its manifest."""
        code = {self.code_file(isa) for isa in self.isas}
        kernels = {kernels_file(isa) for isa in self.isas if self.target.name != "cpu"}
        return {*code, *kernels, WEIGHTS, REPORT}


class Artifact:
    """A compiled model on disk. Without a path of its own (`compile` without output) it lives as
    long as this object; `save` gives it one."""

    def __init__(self, path: Path, manifest: Manifest, temporary: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        if temporary:
            weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)

    def save(self, path: str | Path, force: bool = False) -> Artifact:
        """Copy the artifact to `path`. Raises ArtifactError where something is there and not
        `force`.
        """
        with new_folder(Path(path), force) as folder:
            shutil.copytree(self.path, folder, dirs_exist_ok=True)
        return Artifact(Path(path), self.manifest)

    def load(self, threads: int | None = None) -> Program:
        """The artifact as a callable."""
        from lbcompiler.runtime import Program

        return Program(self, threads)


def open_artifact(path: str | Path, verify: bool = True) -> Artifact:
    """Read and check an artifact without loading its code. Raises ArtifactError.

    `verify=False` skips the hashes (they take about a second a gigabyte), not the schema and sizes.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{folder} is no artifact: it has no {MANIFEST}. `lbc compile` makes one"
        )
    manifest = _read_manifest(folder / MANIFEST)
    if set(manifest.files) != manifest.expected_files:
        raise ArtifactError(f"{folder / MANIFEST} does not list the files of an artifact: altered")
    for name, record in manifest.files.items():
        _check_file(folder, name, record, verify)
    return Artifact(folder, manifest)


def _read_manifest(path: Path) -> Manifest:
    try:
        text = path.read_text()
        version = Version.model_validate_json(text).schema_version
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                f"{path.parent} has schema {version}, this lbcompiler reads {SCHEMA_VERSION}: "
                f"{'upgrade lbcompiler' if version > SCHEMA_VERSION else 'compile the model again'}"
            )
        return Manifest.model_validate_json(text)
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ArtifactError(
            f"{path} is truncated or altered ({str(error).splitlines()[0]}): compile it again"
        ) from None


class Version(BaseModel):
    """What every schema's manifest has."""

    schema_version: int


def _check_file(folder: Path, name: str, record: FileRecord, verify: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{folder} lacks {name}: it is not whole; compile or copy it again")
    size = path.stat().st_size
    if size != record.bytes:
        raise ArtifactError(
            f"{path} has {size} bytes, its manifest says {record.bytes}: truncated or altered; "
            "compile or copy it again"
        )
    if verify and sha256_of(path) != record.sha256:
        raise ArtifactError(
            f"{path} does not have the hash of its manifest: compile or copy it again"
        )


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Every file of the folder but the manifest; folders hold what nobody reads."""
    return {
        path.name: FileRecord(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in sorted(folder.iterdir())
        if path.name != MANIFEST and path.is_file()
    }


@contextmanager
def new_folder(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to fill that becomes `path` at the end, and nothing if something goes wrong."""
    if path.exists() and not force:
        raise ArtifactError(
            f"{path} exists already: say --force (Python: force=True) to replace it"
        )
    if path.exists() and not (path / MANIFEST).is_file():
        raise ArtifactError(
            f"{path} exists and is no artifact: it will not be replaced; choose another name"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    with unfinished(folder):
        try:
            yield folder
            folder.chmod(0o777 & ~umask())  # mkdtemp's folders are for their owner alone
            _put(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _put(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; what was there goes when the new one is in place."""
    if not path.exists():
        os.rename(folder, path)
        return
    old = folder.with_name(folder.name + ".old")
    os.rename(path, old)
    try:
        os.rename(folder, path)
    except BaseException:
        os.rename(old, path)
        raise
    shutil.rmtree(old)
