"""The command line: options, output, errors. The compiler behind it is a stand-in here.

Help and completion are in test_cli_help.py, the whole way in test_cli_flow.py, signals and pipes in
test_cli_process.py.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import lbcompiler
from lbcompiler.artifact import (
    Artifact,
    DimRecord,
    FileRecord,
    LayerRecord,
    Manifest,
    PortRecord,
    SourceRecord,
    TargetRecord,
    Totals,
)
from lbcompiler.cli import app
from lbcompiler.errors import InputError, LbcError, ModelError
from lbcompiler.ir.model import Layer

NAME = "layers[0]/MatMul"
LAYER = Layer(
    NAME, "MatMul", (64, 32), "h", requested="nvfp4", realized="nvfp4", weight_format="nvfp4",
    activation_format="nvfp4", scale_rule="absmax", activation_scale_rule="absmax",
    epilogue="gelu", kernel="gemm_nvfp4",
)  # fmt: skip
KEPT = Layer("scores", "MatMul", (), "s", reason="matmul of two activations")


def record(layer: Layer) -> LayerRecord:
    held = {name: getattr(layer, name, None) for name in LayerRecord.model_fields}
    defaults = {"bias": False, "weights": []}
    return LayerRecord(**{k: defaults.get(k) if v is None else v for k, v in held.items()})


MANIFEST = Manifest(
    schema_version=3,
    created_by={"lbcompiler": "0.1.0"},
    source=SourceRecord(path="m.onnx", sha256="ab" * 32, kind="onnx"),
    target=TargetRecord(name="cpu", isa="avx2"),
    config={},
    inputs=[PortRecord(name="x", dtype="float32", shape=["batch", 32])],
    outputs=[PortRecord(name="y", dtype="float32", shape=["batch", 64])],
    dims=[DimRecord(name="batch", low=1, high=None)],
    states=[],
    layers=[record(LAYER), record(KEPT)],
    totals=Totals(layers=2, quantized=1, weight_bytes=1152, float_bytes=8192),
    parameters=[],
    files={
        "model.so": FileRecord(sha256="00", bytes=10),
        "report.json": FileRecord(sha256="", bytes=5),
    },
)


class StandIn:
    """`lbcompiler.compile`, `plan` and `load`, remembering what they were given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.given: dict[str, Any] = {}
        self.manifest = MANIFEST

    def compile(self, model: Path, **given: Any) -> Artifact:
        self.given = {"model": model, **given}
        given["progress"]("import", 1, 1)
        if self.error is not None:
            raise self.error
        return Artifact(Path(given["output"]), MANIFEST)

    def plan(
        self, model: Path, config: Any, progress: Callable[..., None], dump_ir: Path | None
    ) -> list[Layer]:
        self.given = {"model": model, "config": config, "dump_ir": dump_ir}
        return [LAYER, KEPT]

    def load(self, path: Path, threads: int | None) -> "StandIn":
        self.given = {"path": path, "threads": threads}
        return self

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        if "x" not in feeds:
            raise InputError("input 'x' is missing")
        return {"y": feeds["x"] * 2, "file": np.arange(3)}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandIn:
    monkeypatch.chdir(tmp_path)
    stand_in = StandIn()
    speed = SimpleNamespace(compare=lambda *_: {"ms": 2.0, "float_ms": 5.0, "ratio": 2.5})
    monkeypatch.setitem(sys.modules, "lbcompiler.speed", speed)
    for name in ("compile", "plan", "load"):
        monkeypatch.setitem(lbcompiler.__dict__, name, getattr(stand_in, name))
    return stand_in


def lbc(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> Any:
    """The one JSON object on stdout."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- compile


def test_compile_gives_only_what_was_said(compiler: StandIn) -> None:
    result = lbc("compile", "m.onnx", "--format", "nvfp4", "--exclude", "a", "--exclude", "b",
                 "--input", "x:1x(1..512)", "--input", "a:b:2")  # fmt: skip
    assert result.exit_code == 0, result.output
    config = compiler.given["config"]
    assert config.model_dump(exclude_unset=True) == {
        "format": "nvfp4",
        "exclude": ("a", "b"),
        "inputs": {"x": "1x(1..512)", "a:b": "2"},
    }
    assert compiler.given["model"] == Path("m.onnx")
    assert compiler.given["output"] == Path("m.lbc")
    assert compiler.given["force"] is False
    assert "2 layers (1 nvfp4 x nvfp4, 1 float32)" in result.stdout
    assert "2.50 times faster" in result.stdout


def test_compile_says_when_it_is_slower(compiler: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SimpleNamespace(compare=lambda *_: {"ms": 5.0, "float_ms": 2.0, "ratio": 0.4})
    monkeypatch.setitem(sys.modules, "lbcompiler.speed", slow)
    assert "2.50 times SLOWER" in lbc("compile", "m.onnx").stdout


def test_compile_stands_where_speed_cannot_be_measured(
    compiler: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(*_: Any) -> None:
        raise LbcError("another machine's code")

    monkeypatch.setitem(sys.modules, "lbcompiler.speed", SimpleNamespace(compare=compare))
    result = lbc("compile", "m.onnx")
    assert result.exit_code == 0
    assert "not measured (another machine's code)" in result.stdout
    found = said(lbc("compile", "m.onnx", "--json"))
    assert (found["speed"], found["speed_missing"]) == (None, "another machine's code")


def test_compile_json(compiler: StandIn) -> None:
    found = said(lbc("compile", "m.onnx", "-o", "out.lbc", "--json", "--force"))
    assert found["artifact"] == "out.lbc"
    assert found["bytes"] == 15
    assert found["speed"] == {"ms": 2.0, "float_ms": 5.0, "ratio": 2.5}
    assert found["manifest"] == MANIFEST.model_dump(mode="json")
    assert compiler.given["force"] is True
    assert said(lbc("compile", "m.onnx", "--json", "--no-measure"))["speed"] is None


def test_compile_quiet_says_nothing(compiler: StandIn) -> None:
    result = lbc("compile", "m.onnx", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_saved_settings_reproduce_a_run_and_flags_go_first(
    compiler: StandIn, tmp_path: Path
) -> None:
    first = lbc("compile", "m.onnx", "--format", "mxfp4", "--act-format", "none", "--include",
                "attn", "--scale-rule", "mse", "--save-config", "c.yaml")  # fmt: skip
    assert first.exit_code == 0
    config = compiler.given["config"]
    lbc("compile", "m.onnx", "--config", "c.yaml")
    assert compiler.given["config"] == config
    lbc("compile", "m.onnx", "--config", "c.yaml", "--format", "mxfp6", "--include", "mlp")
    changed = compiler.given["config"]
    assert (changed.format, changed.include) == ("mxfp6", ("mlp",))
    assert (changed.act_format, changed.scale_rule) == ("none", "mse")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


def test_dry_run_prints_the_plan(compiler: StandIn) -> None:
    result = lbc("compile", "m.onnx", "--dry-run", "--format", "nvfp4")
    assert result.exit_code == 0, result.output
    for part in (NAME, "64x32", "gemm_nvfp4", "4.5", "gelu", "matmul of two activations"):
        assert part in result.stdout
    assert "nothing was written" in result.stdout
    found = said(lbc("compile", "m.onnx", "--dry-run", "--format", "nvfp4", "--json"))
    assert found["config"]["format"] == "nvfp4"
    assert found["layers"][0]["name"] == NAME
    assert found["layers"][0]["shape"] == [64, 32]


# --- errors


def test_a_users_error_is_one_paragraph(compiler: StandIn) -> None:
    compiler.error = ModelError("m.onnx is bad:\n  it has no graph")
    result = lbc("compile", "m.onnx")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr == "error: m.onnx is bad: it has no graph\n"


def test_an_error_in_json(compiler: StandIn) -> None:
    compiler.error = ModelError("m.onnx is bad")
    result = lbc("compile", "m.onnx", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout) == {
        "error": {"kind": "ModelError", "message": "m.onnx is bad"}
    }
    assert result.stderr == "error: m.onnx is bad\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device", "/x/m.lbc"), 2, "/x/m.lbc: No space left"),
        (PermissionError(13, "Permission denied"), 2, "Permission denied"),
        (MemoryError(), 2, "not enough memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("odd\nthings"), 1, r"lbc compile failed.*ValueError: odd\).*report.*--debug"),
        (AssertionError(), 1, "AssertionError: no message"),
    ],
)
def test_other_failures(compiler: StandIn, error: BaseException, code: int, message: str) -> None:
    compiler.error = error
    result = lbc("compile", "m.onnx")
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)


@pytest.mark.parametrize("as_variable", [True, False])
def test_debug_shows_the_traceback(
    compiler: StandIn, monkeypatch: pytest.MonkeyPatch, as_variable: bool
) -> None:
    compiler.error = ValueError("odd")
    if as_variable:
        monkeypatch.setenv("LBC_DEBUG", "1")
    result = lbc(*([] if as_variable else ["--debug"]), "compile", "m.onnx")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "fp4"], "mxfp4, nvint4, nvfp4"),
        (["--format", ""], "There is no format ''"),
        (["--input", "x"], "NAME:SHAPE"),
        (["--config", "gone.yaml"], r"gone\.yaml"),
        (["--save-config", "gone/c.yaml"], "gone"),
        (["--on-unsupported", "never"], "on_unsupported"),
    ],
)
def test_bad_options(compiler: StandIn, arguments: list[str], message: str) -> None:
    result = lbc("compile", "m.onnx", *arguments)
    assert result.exit_code == 2
    assert compiler.given == {}
    assert message.replace("\\", "") in result.stderr


# --- run


def test_run(compiler: StandIn, tmp_path: Path) -> None:
    np.savez("in.npz", x=np.ones((2, 32), np.float32))
    result = lbc("run", "m.lbc", "--input-data", "in.npz", "-o", "out.npz", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "2x32" in result.stdout
    assert "saved to out.npz" in result.stdout
    assert compiler.given == {"path": Path("m.lbc"), "threads": 1}
    with np.load("out.npz", allow_pickle=False) as saved:
        assert saved["y"].tolist() == np.full((2, 32), 2).tolist()
        assert saved["file"].tolist() == [0, 1, 2]  # a name that numpy.savez cannot take
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_run_takes_single_files_and_json(compiler: StandIn) -> None:
    np.save("x.npy", np.ones((1, 32), np.float32))
    for given in (["--input", "x=x.npy"], ["--input-data", "x.npy"]):
        found = said(lbc("run", "m.lbc", *given, "--json"))
        assert found["outputs"]["y"] == {"dtype": "float32", "shape": [1, 32]}
        assert found["milliseconds"] >= 0
        assert found["saved"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "input 'x' is missing"),
        (["--input", "x.npy"], "NAME=FILE.npy"),
        (["--input", "x=gone.npy"], "gone.npy"),
        (["--input-data", "x.npy", "-o", "out.txt"], "saved as .npz"),
        (["--input-data", "x.npy", "-o", "gone/out.npz"], "gone"),
    ],
)
def test_run_refusals(compiler: StandIn, arguments: list[str], message: str) -> None:
    np.save("x.npy", np.ones((1, 32), np.float32))
    result = lbc("run", "m.lbc", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


# --- verify


def test_verify_prints_and_passes_on(compiler: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from lbcompiler import verify

    given: dict[str, Any] = {}

    def compare(*arguments: Any, **options: Any) -> verify.Verification:
        given.update(options, arguments=arguments)
        figures = {"qsnr_db": 31.25, "cosine": float("nan"), "perplexity": float("inf")}
        skipped = [("v", "rotated for its reader")]
        return verify.Verification(7, {"y": figures}, [(NAME, 40.5)], skipped)

    monkeypatch.setattr(verify, "verify", compare)
    arguments = ("verify", "m.lbc", "--reference", "m.onnx", "--data", "d.npz", "--metrics",
                 "qsnr,cosine", "--per-layer", "--limit", 3, "--threads", 2)  # fmt: skip
    result = lbc(*arguments)
    assert result.exit_code == 0, result.output
    for part in (NAME, "40.5", "31.25", "nan", "7 samples", "rotated for its reader"):
        assert part in result.stdout
    assert given["arguments"][1:] == (Path("m.onnx"), Path("d.npz"))
    assert (given["metrics"], given["limit"], given["threads"]) == (("qsnr", "cosine"), 3, 2)
    assert said(lbc(*arguments, "--json")) == {
        "samples": 7,
        "outputs": {"y": {"qsnr_db": 31.25, "cosine": None, "perplexity": None}},
        "layers": [{"name": NAME, "qsnr_db": 40.5}],
        "skipped": [{"name": "v", "reason": "rotated for its reader"}],
    }
