"""Rotations are folded away where the linear before can bear it, and stay on the way elsewhere."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.parser import parse_model

import lbcompiler
from lbcompiler.decisions.fold import Folder
from lbcompiler.decisions.work import Work
from lbcompiler.ir.rotation import Rotation

ROWS, WIDTH = 64, 64
ROTATION = Rotation(16)

STRAIGHT = """
<ir_version: 8, opset_import: ["" : 17]>
straight (float[batch, 64] x) => (float[batch, 64] y) {
  hidden = MatMul(x, first_w)
  y = MatMul(hidden, second_w)
}
"""


def straight(kind: str) -> onnx.ModelProto:
    """hidden has a loud channel in each block of 16, which a rotation evens out. The weight that
    makes it is signs, `bears` it: once it is rotated; `does not`: as it is.
    """
    draw = np.random.default_rng(0)
    rows = np.repeat(draw.choice([-1.0, 1.0], (WIDTH // 16, WIDTH)), 16, axis=0)
    if kind == "bears":
        rows *= np.where(draw.random(rows.shape) < 0.05, -1, 1)
        rows = ROTATION.inverse(rows.T).T
    else:
        rows[np.arange(WIDTH) % 16 > 0] = draw.choice([-1.0, 1.0], (WIDTH * 15 // 16, WIDTH)) / 16
    weights = {"first_w": rows.T, "second_w": draw.standard_normal((WIDTH, WIDTH))}
    model = parse_model(STRAIGHT)
    for name, value in weights.items():
        held = numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name)
        model.graph.initializer.append(held)
    for node, name in zip(model.graph.node, ("first", "second"), strict=True):
        node.name = name
    return model


def feeds(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((ROWS, WIDTH)).astype(np.float32)}


def compiled(kind: str, state: Path, **said: Any) -> lbcompiler.Artifact:
    given = {"format": "nvint4", "hadamard": "auto", "quantizer": "gptq"} | said
    return lbcompiler.compile(
        straight(kind),
        "cpu",
        calibration_data=[feeds(seed) for seed in range(1, 17)],
        work=Work(state, jobs=1),
        **given,
    )


def second(artifact: lbcompiler.Artifact) -> Any:
    (layer,) = (layer for layer in artifact.manifest.layers if layer.name == "second")
    assert layer.hadamard
    return layer


def error(artifact: lbcompiler.Artifact, kind: str) -> float:
    first, held = (numpy_helper.to_array(h) for h in straight(kind).graph.initializer)
    wanted = feeds(99)["x"].astype(np.float64) @ first @ held
    y = artifact.load()(**feeds(99))["y"]
    return float(np.square(y - wanted).sum() / np.square(wanted).sum())


def test_a_fold_that_the_linear_before_bears_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = compiled("bears", tmp_path)
    assert second(folded).hadamard_folded
    assert "first rotates its input" in second(folded).reason
    again = compiled("bears", tmp_path)
    assert error(again, "bears") == error(folded, "bears")
    monkeypatch.setattr(Folder, "folds", lambda *_: [])
    online = compiled("bears", tmp_path)
    assert not second(online).hadamard_folded
    assert error(folded, "bears") < error(online, "bears")


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_a_fold_that_hurts_the_linear_before_is_dropped(quantizer: str, tmp_path: Path) -> None:
    artifact = compiled("does not", tmp_path, quantizer=quantizer)
    assert not second(artifact).hadamard_folded


def test_a_linear_in_float_bears_it_always(tmp_path: Path) -> None:
    artifact = compiled("does not", tmp_path, exclude="first")
    assert second(artifact).hadamard_folded
    assert error(artifact, "does not") < 0.02


def test_what_a_fold_measured_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled("bears", tmp_path)
    monkeypatch.setattr("lbcompiler.decisions.fold.again", None)  # nobody asks it
    assert second(compiled("bears", tmp_path)).hadamard_folded
