"""A real model's artifact for GPUs, every kernel emulated, beside its artifact for processors.

Weights alone in a block format: both sum the same exact products in float32, and differ by the
order and by 2^-16 of an activation, which the GPU has as the sum of two bfloat16. Activations as
well: a last bit that moves one across a rounding boundary moves others in the next layers
(tests/bench/agreement.py).
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.emulated_model import compared
from tests.targets.cuda import needs

Built = Callable[[str], Path]
MIN_DB = {"none": 80.0, "mxint8": 35.0}
pytestmark = [pytest.mark.real, pytest.mark.slow, needs.nvcc]


@pytest.mark.parametrize(("fmt", "act_format"), [("nvfp4", "none"), ("mxint8", "mxint8")])
def test_minilm_is_what_the_processor_computes(fmt: str, act_format: str, built: Built) -> None:
    found = compared(built("minilm.onnx"), fmt, act_format, "sm_80", 16)
    assert min(found["db"].values()) > MIN_DB[act_format], found
