"""What verbs print that need no compiler: the formats and the doctor's page, as text and JSON."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lbcompiler import cli_show, doctor
from lbcompiler.cli import app
from lbcompiler.formats import FORMATS


def lbc(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def said(result: Result) -> Any:
    """The one JSON object on stdout."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_formats() -> None:
    text = lbc("formats").stdout
    found = said(lbc("formats", "--json"))["formats"]
    assert [row["name"] for row in found] == list(FORMATS)
    assert all("cpu" in row["targets"] for row in found)
    for name in FORMATS:
        assert name in text


@pytest.mark.parametrize("problems", [[], ["TVM is broken"]])
def test_doctor(monkeypatch: pytest.MonkeyPatch, problems: list[str]) -> None:
    machine = doctor.Machine("Linux", "x86_64", "Some CPU", ["avx2"], 8, 4, 2**34, 2**33)
    checkup = doctor.Checkup(
        "0.1.0",
        machine,
        [doctor.InstructionSet("avx2", True, True)],
        [doctor.Tool("nvcc", "compiles CUDA code")],
        ["NVIDIA H200"],
        [doctor.Package("torch", "==2", "", False, "torch", "pip install torch")],
        problems,
    )
    monkeypatch.setattr(doctor, "examine", lambda: checkup)
    result = lbc("doctor")
    assert result.exit_code == (2 if problems else 0)
    for part in ("Some CPU", "4 of 8 cores", "8 GiB of 16 GiB", "avx2 (chosen)", "NVIDIA H200"):
        assert part in result.stdout
    assert (f"PROBLEM: {problems[0]}" if problems else "no problems found") in result.stdout
    found = json.loads(lbc("doctor", "--json").stdout)
    assert found["problems"] == problems
    assert found["instruction_sets"] == [{"name": "avx2", "runs_here": True, "is_chosen": True}]


def test_sizes_for_people() -> None:
    assert [cli_show.size(n) for n in (0, 1023, 1024, 5 * 2**20, 2**31)] == [
        "0 B", "1023 B", "1 KiB", "5 MiB", "2 GiB",
    ]  # fmt: skip


def test_what_json_has_not_becomes_null(capsys: pytest.CaptureFixture[str]) -> None:
    cli_show.print_json({"a": [float("nan"), {"b": float("-inf")}], "c": (1.5, "x")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": [1.5, "x"]}


def test_tables_keep_names_whole_and_drop_empty_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    long = "model.layers[0]." + "x" * 120
    cli_show.print_table(("name", "nothing", "n"), [(long, "", 1.0), ("b", None, 22.25)])
    text = capsys.readouterr().out
    assert long in text
    assert "nothing" not in text
