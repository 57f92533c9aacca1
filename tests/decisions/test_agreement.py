"""Layers that were decided run as decided: the artifact beside the numpy reference of the same."""

import numpy as np
import pytest

from lbcompiler.decisions.work import Work
from tests.bench.decided import agreement_of_decisions

MODEL, CALIBRATION = "models/tiny_lm.onnx", "models/tiny_lm_calibration.npz"
SAME_ARITHMETIC = 80.0  # dB: float32 sums in another order, over a few dozen layers
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
}


@pytest.mark.parametrize(
    ("case", "act_format"),
    [
        ("rotated", None),
        ("rotated with signs", "none"),
        ("smoothed", None),
        ("mixed", None),
        ("mixed", "none"),
    ],
)
def test_the_artifact_computes_its_decisions(case: str, act_format: str | None) -> None:
    ids = np.load("models/tiny_lm_sample.npz")["input_ids"][:2, :48].astype(np.int64)
    found = agreement_of_decisions(
        MODEL,
        {"input_ids": ids},
        act_format=act_format,
        exclude="head",
        calibration_data=CALIBRATION,
        calibration_samples=8,
        work=Work(jobs=1),
        **CASES[case],
    )
    assert found.output_db > SAME_ARITHMETIC
    assert found.worst_input[1] > SAME_ARITHMETIC, found.worst_input
