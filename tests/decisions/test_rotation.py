"""Rotations of layers, by what they do to a whole model: kept in one that is made so that they
help, dropped in one where they hurt."""

from pathlib import Path
from typing import Any

import numpy as np

import lbcompiler
from tests.decisions.two_linears import ROWS, WIDTH, compiled, error_of

SIZE = 16  # of a rotation that is forced


def weights(kind: str) -> dict[str, np.ndarray]:
    """`loud`: Gaussian. `exact`: the first hands x on, the second adds and subtracts."""
    draw = np.random.default_rng(0)
    first, second = (draw.standard_normal((WIDTH, WIDTH)) for _ in range(2))
    if kind == "exact":
        return {"first_w": np.eye(WIDTH), "second_w": np.sign(second)}
    return {"first_w": first, "second_w": second}


def inputs(kind: str, seed: int) -> np.ndarray:
    """`loud`: two channels thirty times the others. `exact`: 0, 1 and -1, which every format says
    exactly, and not their sums.
    """
    draw = np.random.default_rng(seed)
    if kind == "exact":
        return draw.integers(-1, 2, (ROWS, WIDTH)).astype(np.float64)
    x = draw.standard_normal((ROWS, WIDTH))
    x[:, [5, 37]] *= 30
    return x


def rotated(
    kind: str, state: Path, judged: str = "", **said: Any
) -> tuple[set[int], float, lbcompiler.Artifact]:
    """The rotations that were kept, and the model's error. judged: the kind of the batch that
    judges the whole model, and of the error's.
    """
    data = [inputs(kind, seed) for seed in range(1, 8)] + [inputs(judged or kind, 8)]
    artifact = compiled(weights(kind), data, state, **said)
    error = error_of(artifact, weights(kind), inputs(judged or kind, 99))
    return {layer.hadamard for layer in artifact.manifest.layers}, error, artifact


def test_a_rotation_that_helps_is_kept(tmp_path: Path) -> None:
    kept, error, artifact = rotated("loud", tmp_path / "auto", format="nvint4", hadamard="auto")
    none, plain, _ = rotated("loud", tmp_path / "off", format="nvint4")
    assert max(kept) > 0
    assert none == {0}
    assert error < plain
    assert artifact.manifest.gate.startswith("all as chosen: ")


def test_a_rotation_that_hurts_is_dropped(tmp_path: Path) -> None:
    kept, error, _ = rotated("exact", tmp_path / "auto", format="nvfp4", hadamard="auto")
    forced, turned, _ = rotated("exact", tmp_path / "forced", format="nvfp4", hadamard=SIZE)
    assert kept == {0}
    assert forced == {SIZE}
    assert error < turned


def test_what_every_layer_gains_from_is_dropped_where_the_model_does_not(tmp_path: Path) -> None:
    said = {"judged": "exact", "format": "nvint4"}
    kept, error, artifact = rotated("loud", tmp_path / "auto", hadamard="auto", **said)
    none, plain, _ = rotated("loud", tmp_path / "off", **said)
    assert kept == none == {0}
    assert error == plain
    assert artifact.manifest.gate.startswith("all rounded to nearest: ")
    reasons = [layer.reason for layer in artifact.manifest.layers]
    assert any("but the model gains nothing by it" in reason for reason in reasons)
