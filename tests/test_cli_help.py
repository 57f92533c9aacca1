"""The command line before any work: help, version, wrong usage, completion, what it loads."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lbcompiler.cli import app
from tests.test_cli import lbc


def test_help_names_every_verb() -> None:
    result = lbc("--help")
    assert result.exit_code == 0
    for verb in (
        "compile",
        "analyze",
        "run",
        "inspect",
        "verify",
        "tune",
        "bench",
        "formats",
        "doctor",
    ):
        assert verb in result.stdout
        page = lbc(verb, "-h")
        assert page.exit_code == 0
        assert "--json" in page.stdout
        assert verb in ("formats", "doctor") or f"lbc {verb}" in page.stdout  # an example


def test_version() -> None:
    assert lbc("--version").stdout.startswith("lbc 0.")


@pytest.mark.parametrize(
    "arguments",
    [("compyle",), ("compile",), ("compile", "m.onnx", "--formt", "x"), ("verify", "a")],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = lbc(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("lbc compile m.onnx --format nv", {"nvint4", "nvfp4"}),
        ("lbc compile m.onnx --act-format n", {"none", "nvint4", "nvfp4"}),
        ("lbc compile m.onnx --scale-rule f", {"floor", "four_over_six"}),
        ("lbc compile m.onnx --on-unsupported ", {"error", "fallback", "skip"}),
        ("lbc bench ge", {"gemm"}),
        ("lbc bench gemm --format nvf", {"nvfp4"}),
        ("lbc bench gemm --peers onnxruntime,o", {"onnxruntime,openvino"}),
    ],
)
def test_completion(words: str, completed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LBC_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    result = CliRunner().invoke(app, [], prog_name="lbc")
    assert set(result.stdout.split()) == completed


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["formats"], ["compile", "--help"], ["analyze", "-h"], ["bench", "-h"]],
)
def test_light_verbs_load_no_compiler(arguments: list[str]) -> None:
    code = (
        "import sys; from lbcompiler.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "print(sorted({'tvm', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1:] == ["[]"]
