"""The gate on a whole model, under budgets and interrupted: layers learn from inputs of eight
directions, and what judges has all 64, where GPTQ costs the model more than rounding to nearest.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lbcompiler
from lbcompiler.artifact import WEIGHTS
from lbcompiler.errors import ConfigError
from lbcompiler.manifest import Manifest
from tests.decisions.two_linears import ROWS, WIDTH, compiled

DIRECTIONS = 8
LOUD = [5, 37]  # of the channels that layers learn of, where outliers may go
FORCED = 16  # of a rotation

pytestmark = pytest.mark.usefixtures("no_code")


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal((WIDTH, WIDTH)) for name in ("first_w", "second_w")}


def narrow(seed: int, loudness: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    directions = np.random.default_rng(1).standard_normal((DIRECTIONS, WIDTH)) / 3
    x = draw.standard_normal((ROWS, DIRECTIONS)) @ directions
    x += 0.05 * draw.standard_normal(x.shape)
    x[:, LOUD] *= loudness
    return x


def decided(
    state: Path, *, loudness: float = 1.0, judged: str = "all", **said: Any
) -> lbcompiler.Artifact:
    """judged: by inputs of `all` directions, or of the `same` as were learned."""
    x = np.random.default_rng(8).standard_normal((ROWS, WIDTH))
    data = [narrow(seed, loudness) for seed in range(1, 8)]
    data.append(narrow(8, loudness) if judged == "same" else x)
    return compiled(weights(), data, state, quantizer="gptq", **said)


def rounded(manifest: Manifest) -> set[str]:
    """The layers that the gate put back to rounding."""
    said = "but the model gains nothing by it"
    return {layer.name for layer in manifest.layers if layer.reason.endswith(said)}


def test_a_limit_that_only_the_gate_reaches_is_kept(tmp_path: Path) -> None:
    said = {"formats": ("nvint4",)}
    manifest = decided(tmp_path, min_qsnr=12, **said).manifest
    assert manifest.gate.startswith("all rounded to nearest: the model's QSNR in dB is ")
    (as_chosen,) = manifest.pareto
    assert as_chosen.qsnr_db < 12
    with pytest.raises(ConfigError, match=r"reaches a QSNR of 30 dB: the best of them gives") as at:
        decided(tmp_path, min_qsnr=30, **said)
    best = float(str(at.value).split("gives a QSNR of ")[1].split(" dB")[0])
    assert best > 12
    assert decided(tmp_path, min_qsnr=best - 0.01, **said).manifest.gate == manifest.gate


def test_a_group_that_stays_in_float_is_not_gated(tmp_path: Path) -> None:
    bits = (4.5 + 32) / 2
    manifest = decided(tmp_path, formats=("nvint4", "float"), effective_bits=bits).manifest
    layers = {layer.name: layer for layer in manifest.layers}
    assert {name: layer.realized for name, layer in layers.items()} == {
        "first": "float32",
        "y": "nvint4",
    }
    assert rounded(manifest) == {"y"}
    assert layers["y"].quantizer == "rtn"
    assert manifest.gate.startswith("all rounded to nearest: ")
    assert "the 0 of 1 groups" in manifest.gate
    assert manifest.effective_bits == bits


def test_a_rotation_that_is_forced_stays_where_all_is_rounded(tmp_path: Path) -> None:
    said = {"formats": ("nvint4", "mxint8"), "effective_bits": 4.5, "hadamard": FORCED}
    manifest = decided(tmp_path, **said).manifest
    assert manifest.gate.startswith("all rounded to nearest: ")
    assert rounded(manifest) == {"first", "y"}
    assert {(layer.quantizer, layer.hadamard) for layer in manifest.layers} == {("rtn", FORCED)}


@pytest.mark.parametrize(("judged", "is_kept"), [("same", True), ("all", False)])
def test_a_split_passes_the_gate_with_its_group(judged: str, is_kept: bool, tmp_path: Path) -> None:
    said = {"formats": ("nvint4",), "effective_bits": 8.0, "outliers": len(LOUD)}
    manifest = decided(tmp_path, loudness=30, judged=judged, **said).manifest
    layers = {layer.name: layer for layer in manifest.layers}
    assert any(point.split == ["y"] for point in manifest.pareto)
    assert (layers["y"].outliers > 0) == ("y.outliers" in layers) == is_kept
    assert manifest.gate.startswith("all as chosen: " if is_kept else "all rounded to nearest: ")
    assert manifest.effective_bits is not None
    assert (manifest.effective_bits > 4.5) == is_kept
    assert ("with 32 channels split off, but" in layers["y"].reason) == (not is_kept)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("stopped_at", "left"),
    [
        ("choose 1", ["choose 0", "sensitivity 0", "sensitivity 1", "sensitivity 2"]),
        ("sensitivity 1", ["sensitivity 1", "sensitivity 2"]),
    ],
)
def test_a_run_that_was_stopped_in_the_gate_goes_on(
    stopped_at: str, left: list[str], tmp_path: Path
) -> None:
    """The model rounded and as chosen is measured first, then two groups alone."""
    steps: list[str] = []

    def stop(stage: str, done: int, _total: int) -> None:
        if f"{stage} {done}" == stopped_at:
            raise StoppedError

    def note(stage: str, done: int, _total: int) -> None:
        if stage in ("choose", "sensitivity"):
            steps.append(f"{stage} {done}")

    with pytest.raises(StoppedError):
        decided(tmp_path / "s", format="nvint4", progress=stop)
    resumed = decided(tmp_path / "s", format="nvint4", progress=note).manifest
    assert steps == left
    whole = decided(tmp_path / "whole", format="nvint4").manifest
    assert resumed.gate == whole.gate
    assert resumed.layers == whole.layers
    assert resumed.files[WEIGHTS] == whole.files[WEIGHTS]
