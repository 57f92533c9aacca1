"""From a model and data to an analysis: its figures hang together and are not measured twice."""

import json
import sys
from html import escape
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import lbcompiler
from lbcompiler.cli import app
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.ir.model import Array
from lbcompiler.report.analysis import Analysis
from lbcompiler.report.tensors import figures
from tests.report.chromium import BROWSER, DRAWN, READY, Page
from tests.test_cli_flow import documented, has_fields_of, language_model

FORMATS_TRIED = ("nvfp4", "mxint8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyzed")
    language_model(folder / "lm.onnx")
    ids = np.random.default_rng(1).integers(0, 48, (16, 12))
    np.savez(folder / "ids.npz", input_ids=ids)
    return folder


def analyzed(folder: Path, **said: object) -> Analysis:
    given = {"formats": FORMATS_TRIED, "work": Work(folder / "state", jobs=1)} | said
    return lbcompiler.analyze(folder / "lm.onnx", folder / "ids.npz", **given)


def lbc(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_without_a_budget_everything_is_measured_and_nothing_chosen(folder: Path) -> None:
    found = analyzed(folder)
    assert [layer.name for layer in found.layers] == ["/up/MatMul", "/head/MatMul"]
    assert found.chosen is None
    assert found.budget is None
    assert [layer.chosen for layer in found.layers] == [None, None]
    assert found.ranked_by == "nvfp4"
    costs = [group.options[0].cost for group in found.groups]
    assert costs == sorted(costs, reverse=True)
    for group in found.groups:
        assert tuple(option.format for option in group.options) == FORMATS_TRIED
        assert all(option.kl is not None for option in group.options)
    assert [plan.name for plan in found.uniform] == list(FORMATS_TRIED)
    bits = [plan.effective_bits for plan in found.front]
    assert bits == sorted(bits)
    assert (bits[0], bits[-1]) == (4.5, 8.25)


def test_the_figures_are_those_of_the_tensors(folder: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "lm.onnx")
    weights: dict[str, Array] = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    up = analyzed(folder).layers[0]
    expected = figures(np.ascontiguousarray(weights["w1"].T, np.float32), None, None, False)
    assert up.weight.qsnr_db == pytest.approx(expected.qsnr_db, abs=1e-6)
    assert up.weight.qsnr_hadamard_db == pytest.approx(expected.qsnr_hadamard_db, abs=1e-6)
    assert set(up.activation.qsnr_db) == set(FORMATS)


def test_one_batch_is_warned_of(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", input_ids=np.zeros((1, 12), np.int64))
    said = ["--calibration-data", tmp_path / "one.npz", "--format", "mxint8", "--jobs", 1, "--json"]
    result = lbc("analyze", folder / "lm.onnx", *said, "--state", tmp_path / "state")
    assert result.exit_code == 0, result.output
    assert "warning: " in result.stderr
    assert "one.npz is one batch" in result.stderr
    assert json.loads(result.stdout)["formats"] == ["mxint8"]


def test_a_budget_chooses_and_gives_reasons(folder: Path) -> None:
    found = analyzed(folder, effective_bits=7.0)
    assert found.chosen is not None
    assert found.chosen.effective_bits <= 7.0
    for layer in found.layers:
        assert layer.chosen is not None
        assert layer.chosen.format == found.chosen.plan[layer.name]
        assert "output error" in layer.chosen.reason


def test_what_the_whole_model_decided_is_shown(folder: Path, tmp_path: Path) -> None:
    said = {
        "quantizer": "gptq",
        "hadamard": "auto",
        "smooth": "auto",
        "rotate_residual": "auto",
        "effective_bits": 7.0,
    }
    found = analyzed(folder, output=tmp_path / "r.html", **said)
    assert list(found.judged) == ["residual stream", "smoothing", "whole model"]
    assert "the model's KL in nats a token is " in found.gate
    text = (tmp_path / "r.html").read_text()
    for name, why in found.judged.items():
        assert f"<dt>{name}</dt><dd>{escape(why)}</dd>" in text
    options = [f"--{name.replace('_', '-')}={value}" for name, value in said.items()]
    data = ["--calibration-data", folder / "ids.npz", "--formats", "nvfp4,mxint8"]
    result = lbc(
        "analyze", folder / "lm.onnx", *data, *options, "--state", folder / "state",
        "-o", tmp_path / "again.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = "".join(result.stdout.split())
    for name, why in found.judged.items():
        assert "".join(f"{name}: {why}".split()) in lines


def test_before_the_gate_is_said_where_nothing_is_chosen(folder: Path, tmp_path: Path) -> None:
    found = analyzed(folder, output=tmp_path / "r.html")
    assert found.gate == ""
    assert "measured before the gate on the whole model" in (tmp_path / "r.html").read_text()


def test_a_budget_that_cannot_be_met_says_what_can(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"the least that these formats can do is 4\.5"):
        analyzed(folder, effective_bits=4.0)


def test_one_format_is_what_would_be_compiled(folder: Path) -> None:
    found = analyzed(folder, formats=None, format="nvint4")
    assert found.formats == ("nvint4",)
    assert found.chosen is not None
    assert {layer.chosen.format for layer in found.layers if layer.chosen} == {"nvint4"}


def test_outliers_that_may_be_split_off_are_options_of_their_own(folder: Path) -> None:
    found = analyzed(folder, outliers=4, effective_bits=8.5)
    for group in found.groups:
        assert [o.name for o in group.options] == ["nvfp4", "mxint8", "nvfp4 split", "mxint8 split"]
        for plain, split in zip(group.options[:2], group.options[2:], strict=True):
            assert plain.outliers == 0
            assert (split.bits > plain.bits) == (split.outliers > 0)
    assert found.ranked_by == "nvfp4"
    assert found.chosen is not None


def test_float_among_the_candidates_is_no_option_to_be_measured(folder: Path) -> None:
    found = analyzed(folder, formats=("nvfp4", "float"), output=folder / "float.html")
    assert found.formats == ("nvfp4", "float")
    assert all([o.format for o in group.options] == ["nvfp4"] for group in found.groups)
    assert [plan.name for plan in found.uniform] == ["nvfp4", "float32"]


class StoppedError(Exception):
    pass


def test_an_analysis_that_was_stopped_goes_on(folder: Path, tmp_path: Path) -> None:
    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "tensors" and done == 1:
            raise StoppedError

    work = Work(tmp_path / "state", jobs=1)
    with pytest.raises(StoppedError):
        analyzed(folder, work=work, progress=stop)
    left: dict[str, int] = {}

    def note(stage: str, done: int, total: int) -> None:
        left.setdefault(stage, total - done)

    resumed = analyzed(folder, work=work, progress=note)
    assert left["tensors"] == 1
    assert (left["quantize"], left["sensitivity"]) == (0, 0)
    assert resumed == analyzed(folder)


def test_data_is_needed(folder: Path) -> None:
    with pytest.raises(ConfigError, match="--calibration-data"):
        lbcompiler.analyze(folder / "lm.onnx")


def test_a_report_is_a_page(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"name it lm\.html"):
        analyzed(folder, output=folder / "lm.onnx")


def test_plotly_is_asked_for_before_anything_is_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    state = folder / "never.state"
    with pytest.raises(ConfigError, match="pip install"):
        analyzed(folder, output=folder / "r.html", work=Work(state))
    assert not state.exists()


@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
@pytest.mark.parametrize("said", [{}, {"effective_bits": 7.0}, {"formats": None, "outliers": 4}])
def test_the_page_of_a_real_analysis_is_drawn(
    folder: Path, tmp_path: Path, said: dict[str, object]
) -> None:
    path = tmp_path / "report.html"
    found = analyzed(folder, output=path, **said)
    with Page(path, tmp_path / "profile") as page:
        page.wait_for(READY)
        assert set(page.value(DRAWN)) == {"front", "plans", "sensitivity", "qsnr", "shapes"}
        rows = "[...document.querySelectorAll('#layer-table tbody tr')]"
        assert page.value(f"{rows}.map(row => row.cells[0].textContent)") == [
            layer.name for layer in found.layers
        ]
        page.check()


def test_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    said = ("lm.onnx", "--calibration-data", "ids.npz", "--formats", "nvfp4,mxint8")
    how = ("--effective-bits", 7, "--state", "state", "--jobs", 1)
    result = lbc("analyze", *said, *how, "-o", "report.html", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    has_fields_of(documented("analyze"), found)
    assert found["report"] == "report.html"
    assert "/up/MatMul" in (folder / "report.html").read_text()
    result = lbc("analyze", *said, *how)
    assert result.exit_code == 0, result.output
    assert (folder / "lm.html").exists()
    assert "the compiler would choose" in result.stdout
    assert "KL of the model, nats a token: one group of layers alone" in result.stdout
    result = lbc("analyze", *said, *how, "--json", "--act-format", "nvfp5")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["kind"] == "ConfigError"
