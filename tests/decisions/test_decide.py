"""From calibration data to an artifact, on the model beside the tests."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

import lbcompiler
from lbcompiler.artifact import WEIGHTS
from lbcompiler.compiler import measured, planned
from lbcompiler.config import AnalysisConfig, CompileConfig, make_config
from lbcompiler.decisions.candidates import Options
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.gate import CLEARLY
from lbcompiler.decisions.measured import Measured
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ArtifactError, ConfigError, InputError, LbcWarning
from lbcompiler.formats import FORMATS
from lbcompiler.frontend import import_model
from lbcompiler.manifest import Manifest
from lbcompiler.pipeline import silent

CALIBRATION = "models/tiny_lm_calibration.npz"
SAID = {"calibration_data": CALIBRATION, "calibration_samples": 8, "exclude": "head"}
FORMATS_TRIED = ("nvfp4", "nvint4", "mxint8")
Compiled = Callable[..., lbcompiler.Artifact]  # (state folder, **what is said)


pytestmark = pytest.mark.usefixtures("no_code")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured") / "state"


@pytest.fixture
def compiled(short_lm: Path) -> Compiled:
    def compiled(state: Path | None, **said: object) -> lbcompiler.Artifact:
        return lbcompiler.compile(
            short_lm, "cpu", work=Work(state, jobs=1), **{**SAID, "hadamard": "auto"} | said
        )

    return compiled


def test_a_budget_of_bits_is_kept_and_beats_the_uniform_plans(
    compiled: Compiled, state: Path
) -> None:
    artifact = compiled(state, formats=FORMATS_TRIED, effective_bits=6.0)
    manifest = artifact.manifest
    assert manifest.effective_bits is not None
    assert manifest.effective_bits <= 6.0
    decided = [layer for layer in manifest.layers if layer.requested == "auto"]
    assert {layer.realized for layer in decided} <= set(FORMATS_TRIED)
    assert len({layer.realized for layer in decided}) > 1
    assert all("output error" in layer.reason for layer in decided)
    elements = np.array([np.prod(layer.shape) for layer in decided])
    bits = np.array([FORMATS[layer.realized].bits_per_element for layer in decided])
    assert (elements * bits).sum() / elements.sum() == pytest.approx(manifest.effective_bits)
    points = manifest.pareto
    assert [p.effective_bits for p in points] == sorted(p.effective_bits for p in points)
    kls = [p.kl for p in points if p.kl is not None]
    assert kls == sorted(kls, reverse=True)


def test_layers_that_run_together_have_one_format(compiled: Compiled, state: Path) -> None:
    manifest = compiled(state, formats=FORMATS_TRIED, effective_bits=5.5).manifest
    formats = {layer.name: layer.realized for layer in manifest.layers}
    for block in range(2):
        parts = [formats[f"layers.{block}.attention.{n}"] for n in ("query", "key", "value")]
        assert len(set(parts)) == 1
        assert formats[f"layers.{block}.gate"] == formats[f"layers.{block}.up"]


def test_a_second_run_measures_nothing_again(compiled: Compiled, state: Path) -> None:
    compiled(state, formats=FORMATS_TRIED, effective_bits=6.0)
    stages: set[tuple[str, int]] = set()
    compiled(
        state,
        formats=FORMATS_TRIED,
        max_kl=0.01,
        progress=lambda stage, done, total: stages.add((stage, total - done)),
    )
    for stage in ("quantize", "sensitivity"):
        assert {left for name, left in stages if name == stage and left > 1} == set()


def test_no_plan_is_measured_twice(compiled: Compiled, state: Path) -> None:
    asked = {"formats": FORMATS_TRIED, "effective_bits": 6.5}
    stages: list[str] = []

    def note(stage: str, _done: int, _total: int) -> None:
        stages.append(stage)

    first = compiled(state, **asked).manifest
    assert compiled(state, **asked, progress=note).manifest.pareto == first.pareto
    assert "sensitivity" in stages
    assert "choose" not in stages


def test_a_budget_of_kl_is_measured(compiled: Compiled, state: Path) -> None:
    manifest = compiled(state, formats=FORMATS_TRIED, max_kl=0.01).manifest
    wider = compiled(state, formats=FORMATS_TRIED, max_kl=0.001).manifest
    assert manifest.effective_bits < wider.effective_bits


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"effective_bits": 4.0}, r"least that these formats can do is 4\.5"),
        ({"max_kl": 1e-9}, "best of them gives"),
        ({"min_qsnr": 120.0}, "wider formats"),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_can(
    compiled: Compiled, state: Path, budget: dict[str, float], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        compiled(state, formats=FORMATS_TRIED, **budget)


def test_a_state_of_another_model_is_refused(compiled: Compiled, state: Path) -> None:
    compiled(state, format="mxint8")
    with pytest.raises(ArtifactError, match="of other input shapes"):
        compiled(state, format="mxint8", inputs={"input_ids": "1x32"})


def test_a_state_of_another_model_in_memory_is_refused(short_lm: Path, tmp_path: Path) -> None:
    model = onnx.load(short_lm)
    said = SAID | {"format": "mxint8"}
    lbcompiler.compile(model, "cpu", work=Work(tmp_path / "s", jobs=1), **said)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 2)
    weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
    with pytest.raises(ArtifactError, match="another model"):
        lbcompiler.compile(model, "cpu", work=Work(tmp_path / "s", jobs=1), **said)


def test_deciding_needs_data(compiled: Compiled) -> None:
    with pytest.raises(ConfigError, match="--calibration random"):
        compiled(None, calibration_data=None, effective_bits=6.0)


def test_random_data_only_when_said(compiled: Compiled) -> None:
    artifact = compiled(None, calibration_data=None, calibration="random", format="nvint4")
    assert any(layer.hadamard for layer in artifact.manifest.layers)


def test_wrong_data_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", tokens=np.zeros((2, 8), np.int64))
    with pytest.raises(InputError, match="input_ids"):
        compiled(None, calibration_data=str(tmp_path / "c.npz"))


def test_one_sample_is_enough_to_decide_by(compiled: Compiled, tmp_path: Path) -> None:
    ids = np.load(CALIBRATION)["input_ids"]
    np.savez(tmp_path / "c.npz", input_ids=ids[:1])
    with pytest.warns(LbcWarning, match=r"c\.npz is one batch.*give more samples"):
        artifact = compiled(None, calibration_data=str(tmp_path / "c.npz"), format="mxint4")
    decided = [layer for layer in artifact.manifest.layers if layer.realized == "mxint4"]
    assert any(layer.hadamard for layer in decided)


def test_no_sample_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", input_ids=np.zeros((0, 8), np.int64))
    with pytest.raises(InputError, match="samples"):
        compiled(None, calibration_data=str(tmp_path / "c.npz"))


def test_plain_rounding_looks_at_no_hessian(
    short_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"format": "nvfp4", "hadamard": 16, "outliers": 16, "calibration_samples": 4}

    def decided(state: Path) -> Manifest:
        given = {"calibration_data": CALIBRATION, "exclude": "head"} | said
        return lbcompiler.compile(short_lm, "cpu", work=Work(state, jobs=1), **given).manifest

    def learned(state: Path) -> int:
        (kept,) = state.glob("statistics-*.safetensors")
        return sum(held.size for name, held in load_file(kept).items() if "/hessian" in name)

    without = decided(tmp_path / "without")
    monkeypatch.setattr(Options, "weighs", True)
    with_one = decided(tmp_path / "with")
    assert learned(tmp_path / "without") == 0 < learned(tmp_path / "with")
    assert without.files[WEIGHTS] == with_one.files[WEIGHTS]
    assert without.layers == with_one.layers


class StoppedError(Exception):
    pass


def test_a_run_that_was_stopped_goes_on(compiled: Compiled, tmp_path: Path) -> None:
    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "quantize" and done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        compiled(tmp_path / "s", format="nvfp4", quantizer="gptq", progress=stop)
    begun: list[int] = []

    def note(stage: str, done: int, total: int) -> None:
        if stage == "quantize" and total > 1:
            begun.append(done)

    resumed = compiled(tmp_path / "s", format="nvfp4", quantizer="gptq", progress=note)
    assert begun[0] == 5
    whole = compiled(None, format="nvfp4", quantizer="gptq")
    assert resumed.manifest.files[WEIGHTS] == whole.manifest.files[WEIGHTS]


def feeds() -> Iterator[dict[str, np.ndarray]]:
    ids = np.load(CALIBRATION)["input_ids"]
    return ({"input_ids": row[None]} for row in ids[:6])


def test_feeds_may_come_from_an_iterator(compiled: Compiled) -> None:
    artifact = compiled(None, calibration_data=feeds(), format="nvint4", smooth="auto")
    assert artifact.manifest.config["calibration_data"] == "an iterator (generator)"
    assert any(layer.smoothing for layer in artifact.manifest.layers)


def measured_of(model: Path, config: CompileConfig) -> tuple[Decided, Measured]:
    imported = import_model(model, config.input_shapes)
    found = measured(model, imported, planned(model, config), config, None, Work(), silent)
    assert found is not None
    return found


def test_without_a_budget_an_analysis_measures_and_decides_nothing(short_lm: Path) -> None:
    said = {"formats": ("nvfp4", "mxint8"), "sensitivity": "output"}
    config = make_config(SAID | said, kind=AnalysisConfig)
    decided, known = measured_of(short_lm, config)
    assert known.plan is None
    assert decided.decisions == {}
    assert [plan.effective_bits for plan in known.uniform] == [4.5, 8.25]
    assert len(decided.pareto) == len(known.front) > 2
    assert known.sensitivities.keys() == known.layers.keys()


def test_an_analysis_of_one_format_is_what_compiling_decides(short_lm: Path) -> None:
    said = SAID | {"format": "nvint4"}
    decided, known = measured_of(short_lm, make_config(said, kind=AnalysisConfig))
    compiled_as, quiet = measured_of(short_lm, make_config(said))
    assert known.plan is not None
    assert known.plan.divergence.cost <= known.uniform[0].divergence.cost / CLEARLY
    assert quiet.plan is None
    assert {n: replace(d, reason="") for n, d in decided.decisions.items()} == {
        n: replace(d, reason="") for n, d in compiled_as.decisions.items()
    }
