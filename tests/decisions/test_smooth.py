"""A smoothing is kept where the whole model is better for it."""

from pathlib import Path

import numpy as np
import pytest

from tests.decisions.two_linears import ROWS, WIDTH, compiled, error_of

LOUD = [5, 37]  # of the channels in the middle


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    first, second = (draw.standard_normal((WIDTH, WIDTH)) for _ in range(2))
    first[:, LOUD] *= 30
    return {"first_w": first, "second_w": second}


def inputs(kind: str, seed: int) -> np.ndarray:
    """`quiet`: what the loud channels of the middle are blind to."""
    x = np.random.default_rng(seed).standard_normal((ROWS, WIDTH))
    if kind == "quiet":
        heard, _ = np.linalg.qr(weights()["first_w"][:, LOUD])
        x -= x @ heard @ heard.T
    return x


@pytest.mark.parametrize(("judged", "is_kept"), [("loud", True), ("quiet", False)])
def test_a_smoothing_is_judged_by_the_model(judged: str, is_kept: bool, tmp_path: Path) -> None:
    data = [inputs("loud", seed) for seed in range(1, 8)] + [inputs(judged, 8)]
    x = inputs(judged, 99)
    artifact = compiled(weights(), data, tmp_path / "auto", format="mxint8", smooth="auto")
    without = compiled(weights(), data, tmp_path / "off", format="mxint8")
    assert any(layer.smoothing for layer in artifact.manifest.layers) == is_kept
    errors = [error_of(one, weights(), x) for one in (artifact, without)]
    assert errors[0] < errors[1] if is_kept else errors[0] == errors[1]
    assert "smoothed" in artifact.manifest.smoothing
