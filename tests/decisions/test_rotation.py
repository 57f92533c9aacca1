"""Rotations of layers, by what they do to a whole model: kept in one that is made so that they
help, dropped in one where they hurt."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper
from onnx.parser import parse_model

import lbcompiler
from lbcompiler.decisions.work import Work

ROWS, WIDTH = 64, 64
SIZE = 16  # of a rotation that is forced

TWO_LINEARS = """
<ir_version: 8, opset_import: ["" : 17]>
two_linears (float[batch, 64] x) => (float[batch, 64] y)
{
  first = MatMul(x, first_w)
  hidden = Relu(first)
  y = MatMul(hidden, second_w)
}
"""


def weights(kind: str) -> dict[str, np.ndarray]:
    """`loud`: Gaussian. `exact`: the first hands x on, the second adds and subtracts."""
    draw = np.random.default_rng(0)
    first, second = (draw.standard_normal((WIDTH, WIDTH)) for _ in range(2))
    held = {"first_w": first, "second_w": second}
    if kind == "exact":
        held = {"first_w": np.eye(WIDTH), "second_w": np.sign(second)}
    return {name: weight.astype(np.float32) for name, weight in held.items()}


def inputs(kind: str, seed: int) -> np.ndarray:
    """`loud`: two channels thirty times the others. `exact`: 0, 1 and -1, which every format says
    exactly, and not their sums.
    """
    draw = np.random.default_rng(seed)
    if kind == "exact":
        return draw.integers(-1, 2, (ROWS, WIDTH)).astype(np.float32)
    x = draw.standard_normal((ROWS, WIDTH)).astype(np.float32)
    x[:, [5, 37]] *= 30
    return x


def compiled(kind: str, state: Path, **said: Any) -> tuple[set[int], float]:
    """The rotations that were kept, and the model's error: noise over signal."""
    model = parse_model(TWO_LINEARS)
    for name, weight in weights(kind).items():
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    for node in model.graph.node:
        node.name = node.output[0]
    artifact = lbcompiler.compile(
        model,
        "cpu",
        calibration_data=[{"x": inputs(kind, seed)} for seed in range(1, 9)],
        work=Work(state, jobs=1),
        **said,
    )
    held, x = weights(kind), inputs(kind, 99)
    wanted = np.maximum(x @ held["first_w"], 0) @ held["second_w"]
    noise = np.square(artifact.load()(x=x)["y"] - wanted).sum()
    kept = {layer.hadamard for layer in artifact.manifest.layers}
    return kept, float(noise / np.square(wanted).sum())


def test_a_rotation_that_helps_is_kept(tmp_path: Path) -> None:
    kept, error = compiled("loud", tmp_path / "auto", format="nvint4", hadamard="auto")
    none, plain = compiled("loud", tmp_path / "off", format="nvint4")
    assert max(kept) > 0
    assert none == {0}
    assert error < plain


def test_a_rotation_that_hurts_is_dropped(tmp_path: Path) -> None:
    kept, error = compiled("exact", tmp_path / "auto", format="nvfp4", hadamard="auto")
    forced, turned = compiled("exact", tmp_path / "forced", format="nvfp4", hadamard=SIZE)
    assert kept == {0}
    assert forced == {SIZE}
    assert error < turned
