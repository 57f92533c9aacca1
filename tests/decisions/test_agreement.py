"""Layers that were decided run as decided: the artifact beside the numpy reference of the same."""

from pathlib import Path

import numpy as np
import pytest

from lbcompiler.decisions.work import Work
from tests.bench.decided import agreement_of_decisions, decisions_kept

CALIBRATION = "models/tiny_lm_calibration.npz"
SAME_ARITHMETIC = 80.0  # dB: float32 sums in another order, over a few dozen layers
ANYTHING = 10.0  # times the error without: a gate that lets all of it through
CASES = {
    "rotated": {"format": "nvint4", "quantizer": "mr_gptq"},
    "rotated with signs": {"format": "mxint4", "quantizer": "mr_gptq", "hadamard_seed": 3},
    "smoothed": {"format": "nvfp4", "quantizer": "gptq", "smooth": "auto"},
    "mixed": {
        "formats": ("nvfp4", "nvint4", "mxint8", "float"),
        "effective_bits": 7.0,
        "quantizer": "mr_gptq",
        "smooth": "auto",
        "sensitivity": "output",
    },
    "folded": {"format": "mxint4", "quantizer": "mr_gptq"},
    "stretched": {"format": "mxfp4", "quantizer": "mr_gptq"},
    "residual": {"format": "nvint4", "quantizer": "gptq", "rotate_residual": "auto"},
    "split": {"format": "nvfp4", "quantizer": "mr_gptq", "outliers": 2},
    "residual and split": {
        "format": "mxint4",
        "quantizer": "mr_gptq",
        "hadamard_seed": 3,
        "outliers": 2,
        "rotate_residual": "auto",
    },
}
DECIDED = {  # of what is decided, what a case is about
    "mixed": ["smoothings"],
    "folded": ["folded"],
    "residual": ["residual"],
    "split": ["splits"],
    "residual and split": ["residual", "splits"],
}


@pytest.mark.parametrize(
    ("case", "act_format"),
    [
        ("rotated with signs", "none"),
        ("mixed", None),
        ("folded", None),
        ("stretched", None),
        ("residual and split", None),
        pytest.param("smoothed", None, marks=pytest.mark.slow),
        pytest.param("split", None, marks=pytest.mark.slow),
        pytest.param("rotated", None, marks=pytest.mark.slow),
        pytest.param("mixed", "none", marks=pytest.mark.slow),
        pytest.param("residual", None, marks=pytest.mark.slow),
    ],
)
def test_the_artifact_computes_its_decisions(
    case: str, act_format: str | None, short_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "residual" in DECIDED.get(case, ()):  # no gain here, nor are the others
        monkeypatch.setattr("lbcompiler.decisions.residual.CLEARLY", ANYTHING)
    if "smoothings" in DECIDED.get(case, ()):
        monkeypatch.setattr("lbcompiler.decisions.smooth.CLEARLY", ANYTHING)
    if "splits" in DECIDED.get(case, ()):
        monkeypatch.setattr("lbcompiler.decisions.candidates.GATE", ANYTHING)
    ids = np.load("models/tiny_lm_sample.npz")["input_ids"][:2, :48].astype(np.int64)
    with decisions_kept() as kept:
        found = agreement_of_decisions(
            short_lm,
            {"input_ids": ids},
            act_format=act_format,
            exclude="head",
            calibration_data=CALIBRATION,
            calibration_samples=8,
            work=Work(jobs=1),
            **CASES[case],
        )
    assert all(getattr(kept[0], name) for name in DECIDED.get(case, ()))
    if case == "stretched":
        scales = [weight().tensor_scale for weight in kept[0].weights.values()]
        assert any(scale is not None and scale == np.float32(4 / 3) for scale in scales)
    assert found.output_db > SAME_ARITHMETIC
    assert found.worst_input[1] > SAME_ARITHMETIC, found.worst_input
