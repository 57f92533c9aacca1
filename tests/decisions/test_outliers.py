"""Outliers split off: on a model made so that it helps they go, where it hurts nothing does."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model

import lbcompiler
from lbcompiler.decisions.candidates import GATE, Choice, Options, Solution, solve
from lbcompiler.decisions.cut import outlier_sets
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named
from lbcompiler.ir.outliers import arranged
from lbcompiler.ir.rotation import Rotation
from tests.decisions.test_candidates import K, group

ROWS, WIDTH = 64, 256
LOUD = (40, 70)  # apart, so that their linears' rows are reordered for them to stand together

GATED = """
<ir_version: 8, opset_import: ["" : 17]>
gated (float[batch, 128] x) => (float[batch, 128] y) {
  gate = MatMul(x, gate_w)
  up = MatMul(x, up_w)
  both = Mul(gate, up)
  y = MatMul(both, down_w)
}
"""


def gated(kind: str) -> onnx.ModelProto:
    """down reads gate(x) * up(x): `loud`: two channels a hundred times the others; `stepped`: its
    channels are loud and quiet by turns in whole blocks, which reading them evens out, so that none
    of them may change its place.
    """
    draw = np.random.default_rng(0)
    weights = {name: draw.standard_normal((128, WIDTH)) / 12 for name in ("gate_w", "up_w")}
    weights["down_w"] = draw.standard_normal((WIDTH, 128))
    if kind == "loud":
        weights["up_w"][:, LOUD] *= 100
    if kind == "stepped":
        factors = np.where(np.arange(WIDTH) // 32 % 2, 1.0, 1000.0)
        factors[[8, 70]] *= 10  # the loudest; without them nearly every block has a stranger
        weights["up_w"] *= factors
        weights["down_w"] /= factors[:, None]
    model = parse_model(GATED)
    for name, value in weights.items():
        held = numpy_helper.from_array(value.astype(np.float32), name)
        model.graph.initializer.append(held)
    for node, name in zip(model.graph.node, ("gate", "up", "both", "down"), strict=True):
        node.name = name
    return model


def feeds(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((ROWS, 128)).astype(np.float32)}


def compiled(kind: str, state: Path, **said: Any) -> lbcompiler.Artifact:
    return lbcompiler.compile(
        gated(kind),
        "cpu",
        calibration_data=[feeds(seed) for seed in range(1, 17)],
        work=Work(state, jobs=1),
        **said,
    )


def error(artifact: lbcompiler.Artifact, kind: str) -> float:
    x, weights = feeds(99)["x"].astype(np.float64), {}
    for held in gated(kind).graph.initializer:
        weights[held.name] = numpy_helper.to_array(held).astype(np.float64)
    wanted = ((x @ weights["gate_w"]) * (x @ weights["up_w"])) @ weights["down_w"]
    y = artifact.load()(**feeds(99))["y"]
    return float(np.square(y - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
@pytest.mark.parametrize("fmt", ["nvfp4", "mxfp4", "nvint4"])
def test_a_split_that_helps_is_kept(fmt: str, quantizer: str, tmp_path: Path) -> None:
    said = {"format": fmt, "quantizer": quantizer, "include": "down"}
    split = compiled("loud", tmp_path / "split", outliers="auto", **said)
    whole = compiled("loud", tmp_path / "whole", **said)
    layers = {layer.name: layer for layer in split.manifest.layers}
    assert layers["down"].output_missing == "its outliers are multiplied apart"
    assert layers["down.outliers"].output_missing == "a part of down"
    assert layers["down"].outliers == 32
    assert "split off" in layers["down"].reason
    assert layers["down.outliers"].weight_format == "mxint8"
    assert layers["up"].outliers == layers["gate"].outliers == 0
    assert error(split, "loud") < 0.5 * error(whole, "loud")


def test_the_bits_of_a_split_are_counted(tmp_path: Path) -> None:
    manifest = compiled("loud", tmp_path, outliers="auto", format="nvfp4").manifest
    down, all_of_it = WIDTH * 128, 3 * WIDTH * 128
    extra = format_named("mxint8").bits_per_element * 32 / WIDTH * down / all_of_it
    assert manifest.effective_bits == pytest.approx(4.5 + extra)
    assert manifest.totals.float_bytes == 4 * all_of_it


@pytest.mark.parametrize("fmt", ["nvfp4", "mxfp4"])
def test_a_split_that_hurts_is_refused(fmt: str, tmp_path: Path) -> None:
    artifact = compiled("stepped", tmp_path, outliers=2, format=fmt)
    (down,) = (layer for layer in artifact.manifest.layers if layer.name == "down")
    assert down.outliers == 0
    assert "no split lowers it" in down.reason


def test_under_a_budget_a_split_is_an_option_among_others(tmp_path: Path) -> None:
    said = {"outliers": "auto", "formats": ("nvfp4", "mxint8")}
    tight = compiled("loud", tmp_path, effective_bits=4.5, **said).manifest
    assert tight.effective_bits == 4.5
    wide = compiled("loud", tmp_path, effective_bits=5.0, **said).manifest
    assert {layer.name: layer.outliers for layer in wide.layers}["down"] == 32
    assert 4.5 < wide.effective_bits <= 5.0
    assert any("down" in point.split for point in wide.pareto)
    assert all(set(point.split) <= point.plan.keys() for point in wide.pareto)
    assert not any(point.split for point in wide.pareto if point.effective_bits in (4.5, 8.25))


def test_none_is_asked_for_where_activations_are_float() -> None:
    with pytest.raises(ConfigError, match="act_format is none"):
        lbcompiler.compile(gated("loud"), "cpu", act_format="none", outliers="auto")
    with pytest.raises(ConfigError, match="1 or more"):
        lbcompiler.compile(gated("loud"), "cpu", outliers=0)


@pytest.mark.parametrize("quantizer", ["rtn", "mse", "gptq", "quantease"])
@pytest.mark.parametrize("fmt", ["nvfp4", "mxfp4", "nvint4"])
def test_the_error_is_that_of_both_products(fmt: str, quantizer: str) -> None:
    problem = group("outliers")
    options = Options(quantizer=quantizer, rotations=(16,), outliers=2)
    found = split_solution(problem, fmt, options)
    wanted = problem.sample @ problem.weights[0].T
    assert found.error == pytest.approx(
        np.square(wanted - product(problem, found)).sum() / np.square(wanted).sum(), rel=1e-4
    )


@pytest.mark.parametrize("quantizer", ["gptq", "mr_gptq", "quantease"])
def test_what_is_taken_out_meets_zeros(quantizer: str) -> None:
    found = split_solution(group("outliers"), "nvint4", Options(quantizer=quantizer, outliers=2))
    (weight,) = found.weights
    assert found.taken == 64
    assert found.choice.split is not None
    is_taken = np.isin(np.arange(K) // 32, np.array(found.choice.outliers) // 32)
    np.testing.assert_array_equal(weight.codes.any(axis=0), ~is_taken)


def split_solution(problem: Any, fmt: str, options: Options) -> Solution:
    whole, split = solve(problem, [(fmt, fmt)], options)
    assert split.choice.outliers
    assert split.error < GATE * whole.error
    return split


def product(problem: Any, found: Solution) -> np.ndarray:
    """What the artifact computes, from the formats alone."""
    choice, fmt, wide = (
        found.choice,
        format_named(found.choice.weight_format),
        format_named("mxint8"),
    )
    assert choice.split is not None
    cut = arranged("l", K, choice.split, reorders=False)
    x = problem.sample[:, cut.order]
    if choice.hadamard:
        x = Rotation(choice.hadamard).apply(x)
    first = fmt.rounded(x, choice.act_rule, per_row=True) @ fmt.dequantize(found.weights[0]).T
    read, held = cut.outliers(problem.sample), cut.outliers(problem.weights[0])
    return first + wide.rounded(read) @ wide.rounded(held).T


def test_outliers_are_found_by_how_far_they_stand_out() -> None:
    absmax = np.full(1000, 2.0, np.float32)
    assert outlier_sets(absmax, 1.0, "auto") == []
    absmax[[3, 500, 7]] = 50, 40, 30
    assert outlier_sets(absmax, 1.0, "auto") == [(3,), (3, 500), (3, 500, 7)]
    assert outlier_sets(absmax, 1.0, 2) == [(3, 500)]
    assert outlier_sets(absmax, 1.0, "off") == []


def test_a_rotation_reaches_no_further_than_a_split() -> None:
    choice = Choice("nvfp4", "nvfp4", "absmax", "absmax", hadamard=128, outliers=(3,))
    assert choice.split is not None
    assert choice.split.block == 128
