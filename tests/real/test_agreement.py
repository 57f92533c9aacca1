"""Compiled, every real model computes its quantization: beside the numpy reference of it, in dB.

`agreement` fails as well where the compiler left a linear in float that the reference quantizes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lbcompiler

Built = Callable[[str], Path]
FILES = (
    "minilm.onnx",
    "minilm.pt2",
    "rapidocr_recognition.onnx",
    "rapidocr_detection.onnx",
    "rapidocr_angle.onnx",
    "smollm2.onnx",
    "smollm2.pt2",
)
FORMATS = ("mxint8", "mxfp8", "nvfp4", "nvint4", "mxfp4")
QUICK = {("nvfp4", "nvfp4"), ("mxint8", "none")}  # of the small models; the rest is `slow`
SAME_ARITHMETIC = 80.0  # dB
pytestmark = pytest.mark.real


def cases() -> list[Any]:
    return [
        pytest.param(
            file,
            fmt,
            act_format,
            marks=() if (fmt, act_format) in QUICK and "smollm2" not in file else pytest.mark.slow,
            id=f"{file}-{fmt}-{act_format}",
        )
        for file in FILES
        for fmt in FORMATS
        for act_format in (fmt, "none")
    ]


@pytest.mark.parametrize(("file", "fmt", "act_format"), cases())
def test_agrees_with_the_reference(file: str, fmt: str, act_format: str, built: Built) -> None:
    pytest.importorskip("tokenizers", reason="the tokenizers are read with it")
    pytest.importorskip("PIL", reason="the texts are rendered with it")
    from tests.bench.accuracy import reference_engine
    from tests.bench.accuracy_tasks import TASKS
    from tests.bench.agreement import activations_in_memory, agreement
    from tests.bench.fake_quantized import Quantization

    path = built(file)
    with activations_in_memory():
        program = lbcompiler.compile(path, target="cpu", format=fmt, act_format=act_format).load()
    reference = reference_engine(path, Quantization(fmt, act_format), set())
    found = agreement(program, reference, TASKS[path.stem].feeds(path.parent))
    assert found.output_db > SAME_ARITHMETIC
    assert found.worst_input[1] > SAME_ARITHMETIC, found.worst_input
