"""The residual stream is rotated on a model made so that it helps, and left where it hurts."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model

import lbcompiler
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.rounded import RoundedModel
from lbcompiler.decisions.work import Work

ROWS, WIDTH = 64, 64

RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float[batch, 64] x) => (float[batch, 64] y)
<float epsilon = {0.00001}, float two = {2.0}>
{
  s = MatMul(x, embed_w)
  square = Pow(s, two)
  mean = ReduceMean<axes = [-1], keepdims = 1>(square)
  shifted = Add(mean, epsilon)
  root = Sqrt(shifted)
  unit = Div(s, root)
  n = Mul(unit, gain)
  up = MatMul(n, up_w)
  hidden = Relu(up)
  down = MatMul(hidden, down_w)
  s2 = Add(s, down)
  square2 = Pow(s2, two)
  mean2 = ReduceMean<axes = [-1], keepdims = 1>(square2)
  shifted2 = Add(mean2, epsilon)
  root2 = Sqrt(shifted2)
  unit2 = Div(s2, root2)
  n2 = Mul(unit2, gain2)
  y = MatMul(n2, head_w)
}
"""


def residual(kind: str) -> onnx.ModelProto:
    """`loud`: two channels of the stream a hundred times the others; `sparse`: it is x, of which
    most is zero, and the weights are signs.
    """
    draw = np.random.default_rng(0)
    shape = (WIDTH, WIDTH)
    weights = {name: draw.standard_normal(shape) / 8 for name in ("embed_w", "up_w", "head_w")}
    weights |= {"down_w": draw.standard_normal(shape) / 64}
    weights |= {name: draw.uniform(0.5, 2, WIDTH) for name in ("gain", "gain2")}
    if kind == "loud":
        weights["embed_w"][:, [5, 37]] *= 100
    else:
        weights["embed_w"] = np.eye(WIDTH)
        weights["down_w"] *= 0
        weights |= {name: np.sign(weights[name]) for name in ("up_w", "head_w")}
        weights |= {"gain": np.ones(WIDTH), "gain2": np.ones(WIDTH)}
    model = parse_model(RESIDUAL)
    for name, value in weights.items():
        held = numpy_helper.from_array(value.astype(np.float32), name)
        model.graph.initializer.append(held)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def feeds(kind: str, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((ROWS, WIDTH))
    if kind == "sparse":
        x *= draw.random(x.shape) < 1 / 16
    return {"x": x.astype(np.float32)}


def compiled(kind: str, state: Path, **said: Any) -> lbcompiler.Artifact:
    return lbcompiler.compile(
        residual(kind),
        "cpu",
        calibration_data=[feeds(kind, seed) for seed in range(1, 17)],
        work=Work(state, jobs=1),
        **said,
    )


def reasons(artifact: lbcompiler.Artifact) -> list[bool]:
    layers = [layer for layer in artifact.manifest.layers if layer.weight_format != "none"]
    return ["residual stream is rotated in blocks of 64" in layer.reason for layer in layers]


def outputs(artifact: lbcompiler.Artifact, kind: str) -> np.ndarray:
    return artifact.load()(**feeds(kind, 99))["y"]


@pytest.mark.parametrize(("fmt", "quantizer"), [("nvint4", "rtn"), ("mxint8", "gptq")])
def test_a_rotation_that_helps_is_kept(fmt: str, quantizer: str, tmp_path: Path) -> None:
    said = {"format": fmt, "quantizer": quantizer, "exclude": "^s$"}
    turned = compiled("loud", tmp_path / "turned", rotate_residual="auto", **said)
    plain = compiled("loud", tmp_path / "plain", **said)
    assert reasons(turned) == [True] * 3
    assert not any(layer.hadamard for layer in turned.manifest.layers)
    wanted = reference("loud")
    errors = [np.square(outputs(a, "loud") - wanted).sum() for a in (turned, plain)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("fmt", ["nvint4", "nvfp4", "mxfp4"])
def test_a_rotation_that_hurts_is_dropped(fmt: str, tmp_path: Path) -> None:
    artifact = compiled("sparse", tmp_path, format=fmt, rotate_residual="auto")
    assert reasons(artifact) == [False] * 4
    assert artifact.manifest.residual.startswith("not rotated: the model's QSNR in dB is ")


def test_what_helps_the_layers_and_not_the_model_is_dropped(tmp_path: Path) -> None:
    """The first layer's noise, in proportion to the loud channels, would reach all of them."""
    assert (
        reasons(compiled("loud", tmp_path, format="nvint4", rotate_residual="auto")) == [False] * 4
    )


def test_a_smoothing_is_judged_beside_what_the_rotation_was_judged_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[Divergence] = []

    def loss(*arguments: Any) -> Divergence:
        losses.append(measured(*arguments))
        return losses[-1]

    measured = RoundedModel.loss
    monkeypatch.setattr(RoundedModel, "loss", loss)
    said = {"format": "mxint8", "exclude": "^s$", "smooth": "auto"}
    manifest = compiled("loud", tmp_path, rotate_residual="auto", **said).manifest
    plain, turned, smooth = (f"{loss.qsnr_db:.4g}" for loss in losses)
    assert manifest.residual.startswith(
        f"rotated: the model's QSNR in dB is {plain} as it is, {turned} with "
    )
    assert manifest.smoothing == (
        f"smoothed: the model's QSNR in dB is {turned} as it is, {smooth} smoothed"
    )


def test_without_a_stream_nothing_is_rotated(tmp_path: Path) -> None:
    model = residual("loud")
    model.graph.output.append(onnx.helper.make_tensor_value_info("s2", 1, ["batch", WIDTH]))
    artifact = lbcompiler.compile(
        model,
        "cpu",
        format="nvint4",
        rotate_residual="auto",
        calibration_data=[feeds("loud", seed) for seed in range(16)],
        work=Work(tmp_path, jobs=1),
    )
    assert reasons(artifact) == [False] * 4


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [2, 5])
def test_a_search_that_was_stopped_goes_on(stopped_at: int, tmp_path: Path) -> None:
    """Three groups twice: as they are, and rotated."""
    seen: list[int] = []

    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "residual" and done == stopped_at:
            raise StoppedError

    def note(stage: str, done: int, total: int) -> None:
        if stage == "residual":
            assert total == 6
            seen.append(done)

    said = {"format": "nvint4", "exclude": "^s$", "rotate_residual": "auto"}
    with pytest.raises(StoppedError):
        compiled("loud", tmp_path / "s", progress=stop, **said)
    resumed = compiled("loud", tmp_path / "s", progress=note, **said)
    assert seen[0] == stopped_at
    assert not list((tmp_path / "s").glob("residual-*/"))  # the codes are gone
    assert reasons(resumed) == [True] * 3
    whole = compiled("loud", tmp_path / "whole", **said)
    np.testing.assert_array_equal(outputs(resumed, "loud"), outputs(whole, "loud"))


def reference(kind: str) -> np.ndarray:
    held = {h.name: numpy_helper.to_array(h) for h in residual(kind).graph.initializer}

    def norm(s: np.ndarray, gain: str) -> np.ndarray:
        return s / np.sqrt(np.square(s).mean(-1, keepdims=True) + 1e-5) * held[gain]

    s = feeds(kind, 99)["x"] @ held["embed_w"]
    s = s + np.maximum(norm(s, "gain") @ held["up_w"], 0) @ held["down_w"]
    return norm(s, "gain2") @ held["head_w"]
