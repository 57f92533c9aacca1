"""The whole way behind the command line: a small model compiled, inspected, run and verified.

What every verb prints as JSON is held against docs/json.md, field by field.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner, Result

from lbcompiler.cli import app
from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.isa import preferred
from lbcompiler.targets.cpu.kernels import kernel_for

ROOT = Path(__file__).parent.parent


def lbc(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def language_model(path: Path) -> None:
    """input_ids -> embedding -> MatMul + bias -> Relu -> MatMul -> logits over 48 tokens."""
    seed = np.random.default_rng(0)
    held = {
        "table": seed.standard_normal((48, 64)),
        "w1": seed.standard_normal((64, 96)) / 8,
        "b1": seed.standard_normal(96),
        "w2": seed.standard_normal((96, 48)) / 8,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"], "/embed/Gather"),
            helper.make_node("MatMul", ["x", "w1"], ["h"], "/up/MatMul"),
            helper.make_node("Add", ["h", "b1"], ["hb"], "/up/Add"),
            helper.make_node("Relu", ["hb"], ["r"], "/act/Relu"),
            helper.make_node("MatMul", ["r", "w2"], ["logits"], "/head/MatMul"),
        ],
        "lm",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 48])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lm.onnx, ids.npz and, compiled from them, lm.lbc with compile.json."""
    folder = tmp_path_factory.mktemp("flow")
    language_model(folder / "lm.onnx")
    ids = np.random.default_rng(1).integers(0, 48, (6, 9))
    np.savez(folder / "ids.npz", input_ids=ids)
    result = lbc("compile", folder / "lm.onnx", "-o", folder / "lm.lbc", "--format", "mxint8",
                 "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    (folder / "compile.json").write_text(result.stdout)
    return folder


def documented(name: str) -> Any:
    """The example of docs/json.md for `name`."""
    text = (ROOT / "docs" / "json.md").read_text()
    found = re.search(rf"^```json {name}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return json.loads(found[1])


def has_fields_of(example: Any, found: Any, where: str = "") -> None:
    """Every field of the example is in what was printed, with a value of its type."""
    if isinstance(example, dict):
        assert isinstance(found, dict), where
        for key in example.keys() & found.keys() if is_open(where) else example:
            assert key in found, f"{where}.{key}"
            has_fields_of(example[key], found[key], f"{where}.{key}")
    elif isinstance(example, list):
        assert isinstance(found, list), where
        for item in found[: 1 if example else 0]:
            has_fields_of(example[0], item, f"{where}[]")
    elif isinstance(example, float):
        assert isinstance(found, (int, float)), where
    else:
        assert isinstance(found, type(example)) or found is None, where


def is_open(where: str) -> bool:
    """Whether the keys there are names of the model or of a kernel's config, not fields."""
    named_by_kernel = where in (".results[].default", ".results[].config")
    names = ("created_by", "files", "outputs", "peers", "missing", "inputs", "ceilings", "plan")
    return named_by_kernel or where.rpartition(".")[2] in names


def test_compile_json(folder: Path) -> None:
    found = json.loads((folder / "compile.json").read_text())
    has_fields_of(documented("compile"), found)
    assert found["manifest"] == json.loads((folder / "lm.lbc" / "manifest.json").read_text())
    assert found["speed"]["ratio"] == pytest.approx(
        found["speed"]["float_ms"] / found["speed"]["ms"]
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "compile.json", "ids.npz", "lm.lbc", "lm.onnx",
    ]  # fmt: skip


def test_dry_run_tells_what_compile_does(folder: Path) -> None:
    found = said(lbc("compile", folder / "lm.onnx", "--format", "mxint8", "--dry-run", "--json"))
    has_fields_of(documented("plan"), found)
    made = json.loads((folder / "lm.lbc" / "manifest.json").read_text())
    shown = documented("plan")["layers"][0].keys()
    assert [{key: layer[key] for key in shown} for layer in found["layers"]] == [
        {key: layer[key] for key in shown} for layer in made["layers"]
    ]


def test_inspect_shows_every_layer(folder: Path) -> None:
    found = said(lbc("inspect", folder / "lm.lbc", "--json"))
    has_fields_of(documented("inspect"), found)
    assert [(x["name"], x["requested"], x["realized"]) for x in found["layers"]] == [
        ("/up/MatMul", "mxint8", "mxint8"),
        ("/head/MatMul", "mxint8", "mxint8"),
    ]
    text = lbc("inspect", folder / "lm.lbc").stdout
    for part in ("/up/MatMul", "all hashes verified", "int64 batchxlength", "requested",
                 "realized", "2 layers (2 mxint8 x mxint8)"):  # fmt: skip
        assert part in text
    assert "/up/MatMul" not in lbc("inspect", folder / "lm.lbc", "--no-layers").stdout


def test_inspect_finds_an_altered_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "lm.lbc", tmp_path / "bad.lbc")
    weights = tmp_path / "bad.lbc" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    result = lbc("inspect", tmp_path / "bad.lbc", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["kind"] == "ArtifactError"
    assert "weights.safetensors" in result.stderr


def test_run_and_verify_agree_with_the_source(folder: Path) -> None:
    found = said(
        lbc("run", folder / "lm.lbc", "--input-data", folder / "ids.npz", "-o",
            folder / "out.npz", "--json")
    )  # fmt: skip
    has_fields_of(documented("run"), found)
    with np.load(folder / "out.npz") as saved:
        assert saved["logits"].shape == (6, 9, 48)
    (folder / "out.npz").unlink()
    found = said(
        lbc("verify", folder / "lm.lbc", "--reference", folder / "lm.onnx", "--data",
            folder / "ids.npz", "--per-layer", "--json")
    )  # fmt: skip
    has_fields_of(documented("verify"), found)
    assert found["samples"] == 6
    figures = found["outputs"]["logits"]
    assert figures.keys() == documented("verify")["outputs"]["logits"].keys()
    assert 35 < figures["qsnr_db"] < 60  # two layers of 8 bits
    assert figures["top1"] > 0.9
    assert figures["perplexity"] == pytest.approx(figures["reference_perplexity"], rel=0.05)
    layers = {layer["name"]: layer["qsnr_db"] for layer in found["layers"]}
    assert list(layers) == ["/up/MatMul", "/head/MatMul"]
    assert layers["/up/MatMul"] > layers["/head/MatMul"] > 35
    assert layers["/head/MatMul"] == pytest.approx(figures["qsnr_db"], abs=0.01)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("ids", np.zeros((1, 2), np.int64), "'ids'"),
        ("input_ids", np.zeros((1, 2), np.int32), "int32"),
        ("input_ids", np.zeros(2, np.int64), "shape"),
    ],
)
def test_wrong_inputs(folder: Path, tmp_path: Path, name: str, array: Any, message: str) -> None:
    np.savez(tmp_path / "wrong.npz", **{name: array})
    for verb in (
        ("run", folder / "lm.lbc", "--input-data"),
        ("verify", folder / "lm.lbc", "--reference", folder / "lm.onnx", "--data"),
    ):
        result = lbc(*verb, tmp_path / "wrong.npz")
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert name in result.stderr or message in result.stderr


def test_an_artifact_is_not_replaced_unasked(folder: Path) -> None:
    before = (folder / "lm.lbc" / "manifest.json").stat().st_mtime_ns
    result = lbc("compile", folder / "lm.onnx", "-o", folder / "lm.lbc", "--no-measure")
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert (folder / "lm.lbc" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exclude", "no_such_layer"], "matches no layer"),
        (["--target", "gpu"], "unknown target"),
        (["--target", "cpu:mmx"], "mmx"),
        (["--input", "ids:1x8"], "ids"),
    ],
)
def test_refusals_of_the_compiler(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = lbc("compile", folder / "lm.onnx", "-o", tmp_path / "x.lbc", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_model_is_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\x08not a model")
    result = lbc("compile", tmp_path / "bad.onnx", "-o", tmp_path / "x.lbc")
    assert result.exit_code == 2, result.output
    assert "bad.onnx" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


def test_tune_then_compile_with_the_results(folder: Path, tmp_path: Path) -> None:
    database, table = tmp_path / "t.db", tmp_path / "t.json"
    common = ("--format", "nvfp4", "--trials", 1, "--db", database, "--json")
    found = said(lbc("tune", folder / "lm.onnx", "--rows", 1, *common))
    has_fields_of(documented("tune"), found)
    assert [result["shape"] for result in found["results"]] == [[1, 64, 96], [1, 96, 48]]
    assert [result["trials"] for result in found["results"]] == [1, 1]
    found = said(lbc("tune", folder / "lm.onnx", "--shape", "2x64x96", "--input",
                     "input_ids:3x9", "--export", table, *common))  # fmt: skip
    shapes = [result["shape"] for result in found["results"]]
    assert shapes == [[2, 64, 96], [27, 64, 96], [27, 96, 48]]
    assert found["exported"] == str(table)
    common = ("compile", folder / "lm.onnx", "--format", "nvfp4", "--json", "--tuning-db")
    made = said(lbc(*common, database, "-o", tmp_path / "lm.lbc", "--no-measure"))["manifest"]
    assert [layer["config_source"] for layer in made["layers"]] == [str(database)] * 2
    assert made["tuning"] == {
        "database": str(database), "results": 5, "other_versions": 0, "layers": 2,
    }  # fmt: skip
    held = json.loads(table.read_text())
    assert held["results"] == []  # one trial beats no default
    kernel = kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], preferred()).tuned_as(1)
    faster = {"kernel": kernel, "shape": [1, 64, 96], "ms": 1, "default_ms": 2}
    held["results"] = [faster | {"config": {"small_columns": 3}}]
    table.write_text(json.dumps(held))
    planned = said(lbc(*common, table, "--dry-run"))["layers"]
    assert [str(table) in layer["config_source"] for layer in planned] == [True, False]
    assert planned[0]["config"]["small_columns"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "nothing to tune"),
        (["tune", "--shape", "4x4"], "MxKxN"),
        (["tune", "--shape", "4x4x4", "--target", "cpu:mmx"], "mmx"),
        (["tune", "--shape", "4x4x4", "--target", "gpu"], "unknown target 'gpu'"),
        (["tune", "--shape", "4x4x4", "--rpc", "there"], "host:port"),
        (["compile", "lm.onnx", "--tuning-db", "gone.db"], "no tuning database gone.db"),
        (["compile", "lm.onnx", "--tuning-db", "gone.json"], "gone.json"),
    ],
)
def test_refusals_of_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = lbc(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_formats_and_doctor_json() -> None:
    has_fields_of(documented("formats"), said(lbc("formats", "--json")))
    has_fields_of(documented("doctor"), said(lbc("doctor", "--json")))
    error = documented("error")["error"]
    result = lbc("compile", "m.onnx", "--format", "nvfp5", "--json")
    assert json.loads(result.stdout)["error"].keys() == error.keys()


def test_ctrl_c_in_a_compilation_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "lbcompiler", "compile", folder / "lm.onnx", "-o", "x.lbc"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not list(tmp_path.iterdir()):  # the hidden folder that is being filled
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.splitlines()[-1:] == ["error: interrupted"]
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
