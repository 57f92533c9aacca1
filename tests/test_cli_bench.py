"""`lbc bench`: what it takes, what it prints, and one small real run of each form."""

from pathlib import Path
from typing import Any

import pytest

from lbcompiler.bench import model_peers, on_cpu
from lbcompiler.targets.configs import Result, Table
from lbcompiler.targets.cpu import ceilings
from lbcompiler.tuning.database import versions
from tests.test_cli_flow import documented, has_fields_of, language_model, lbc, said


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "STEPS", 1000)
    monkeypatch.setattr(ceilings, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(on_cpu, "COLD_BYTES", 1 << 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lm.onnx and, compiled from it, lm.lbc."""
    folder = tmp_path_factory.mktemp("bench")
    language_model(folder / "lm.onnx")
    result = lbc("compile", folder / "lm.onnx", "-o", folder / "lm.lbc", "--no-measure")
    assert result.exit_code == 0, result.output
    return folder


def test_gemm_json() -> None:
    found = said(lbc("bench", "gemm", "--format", "mxint8,nvfp4", "--shape", "2x64x48", "1x32x16",
                     "--peers", "onnxruntime", "--rounds", 1, "--json"))  # fmt: skip
    has_fields_of(documented("bench-gemm"), found)
    assert [(row["format"], row["shape"]) for row in found["rows"]] == [
        ("mxint8", [2, 64, 48]), ("mxint8", [1, 32, 16]),
        ("nvfp4", [2, 64, 48]), ("nvfp4", [1, 32, 16]),
    ]  # fmt: skip
    assert "onnxruntime_nbits4" in found["rows"][2]["peers"]


def test_gemm_table() -> None:
    result = lbc("bench", "gemm", "3x40x24", "--act-format", "none", "--peers", "onnxruntime",
                 "--target", "cpu:generic", "--rounds", 1, "--threads", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "mxint8 x none" in result.stdout
    assert "onnxruntime_dynamic_int8" in result.stdout
    assert "generic has no float32 peak that could be measured" in result.stdout
    assert "1 thread)" in result.stdout


def test_gemm_takes_results_of_tuning(tmp_path: Path) -> None:
    kernel = "integer_nvfp4_nvfp4_generic"
    held = Result(kernel=kernel, shape=(2, 64, 48), config={"few_columns": 2}, ms=1, default_ms=2)
    table = tmp_path / "t.json"
    table.write_text(Table(processor="p", versions=versions(), results=(held,)).to_text())
    common = ("bench", "gemm", "2x64x48", "--format", "nvfp4", "--target", "cpu:generic")
    found = said(lbc(*common, "--tuning-db", table, "--rounds", 1, "--json"))
    assert found["rows"][0]["config_source"] == str(table)
    missing = lbc(*common, "--tuning-db", tmp_path / "gone.json")
    assert missing.exit_code == 2
    assert "gone.json" in missing.output


def test_model_json(folder: Path) -> None:
    found = said(lbc("bench", folder / "lm.lbc", "--against", folder / "lm.onnx", "--profile",
                     "--peers", "onnxruntime", "--input", "input_ids:2x9", "--rounds", 1,
                     "--json"))  # fmt: skip
    linears = [row for row in found["profile"] if row["gops"] is not None]
    has_fields_of(documented("bench-model"), {**found, "profile": linears})
    assert found["inputs"] == {"input_ids": [2, 9]}
    assert set(found["peers"]) == {"onnxruntime_float", "onnxruntime_dynamic_int8"}
    assert sorted(row["shape"] for row in linears) == [[18, 64, 96], [18, 96, 48]]
    for row in found["profile"]:
        if row["gops"] is None and row["gb_s"] is not None:
            wanted = row["gb_s"] / found["ceilings"]["read"]
            assert (row["ceiling"], row["ceiling_share"]) == ("read", pytest.approx(wanted))
    assert sum(row["share"] for row in found["profile"]) == pytest.approx(1)
    assert found["profile"] == sorted(found["profile"], key=lambda row: -row["ms"])


def test_model_table(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no such operator\nat line 3")

    monkeypatch.setattr(model_peers, "_dynamic_int8", broken)
    result = lbc("bench", folder / "lm.lbc", "--against", folder / "lm.onnx", "--profile",
                 "--peers", "onnxruntime", "--rounds", 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "input_ids 1x128" in result.stdout
    assert "onnxruntime_dynamic_int8: not measured (RuntimeError: no such operator)" in (
        result.stdout
    )
    assert "128x64x96" in result.stdout
    assert "peaks here and now: " in result.stdout


def test_a_model_alone(folder: Path) -> None:
    found = said(lbc("bench", folder / "lm.lbc", "--rounds", 1, "--json"))
    assert (found["against"], found["peers"], found["profile"]) == (None, {}, [])
    assert found["ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gemm", "--shape", "8x8"], "MxKxN"),
        (["gemm", "1x8"], "MxKxN"),
        (["gemm", "--format", "nvfp9"], "no format 'nvfp9'"),
        (["gemm", "--act-format", "fp9"], "no format 'fp9'"),
        (["gemm", "--peers", "mkl"], "unknown peer 'mkl'"),
        (["gemm", "--target", "cpu:vax"], "unknown instruction set 'vax'"),
        (["gemm", "--profile"], "--profile is for `lbc bench OUT.lbc`"),
        (["gemm", "--input", "x:1"], "--input is for `lbc bench OUT.lbc`"),
        (["m.lbc", "--hot"], "--hot is for `lbc bench gemm`"),
        (["m.lbc", "1x2x3"], "--shape is for `lbc bench gemm`"),
        (["m.lbc"], "is no artifact"),
        (["m.lbc", "--tuning-db", "t.db"], "--tuning-db is for `lbc bench gemm`"),
        (["m.lbc", "--peers", "onnxruntime"], "say --against MODEL"),
        (["m.lbc", "--input", "x"], "is not NAME:SHAPE"),
        (["m.lbc", "--input", "x:1x?"], "has to give every size"),
        (["LM", "--input", "y:1x2"], "none of the model's: input_ids:batchxlength"),
        (["LM", "--input", "input_ids:1x2x3"], "none of the model's: input_ids:batchxlength"),
        (["LM", "--against", "lm.txt"], "lm.txt"),
        (["LM", "--against", "ONNX", "--peers", "mkl"], "unknown peer 'mkl'"),
        (["LM", "--against", "ONNX", "--peers", "torch"], "torch does not run lm.onnx"),
    ],
)
def test_refusals(folder: Path, arguments: list[str], message: str) -> None:
    paths = {"LM": folder / "lm.lbc", "ONNX": folder / "lm.onnx"}
    result = lbc("bench", *(paths.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.output


def test_a_missing_runtime_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_peers, "find_spec", lambda _name: None)
    result = lbc("bench", folder / "lm.lbc", "--against", folder / "lm.onnx", "--peers", "openvino")
    assert result.exit_code == 2
    assert "pip install openvino" in result.output
