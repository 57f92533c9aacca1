"""relu(x W1) W2, small enough to say what must happen to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper
from onnx.parser import parse_model

import lbcompiler
from lbcompiler.decisions.work import Work

ROWS, WIDTH = 64, 64

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
two_linears (float[batch, 64] x) => (float[batch, 64] y)
{
  first = MatMul(x, first_w)
  hidden = Relu(first)
  y = MatMul(hidden, second_w)
}
"""


def compiled(
    weights: Mapping[str, np.ndarray], data: Sequence[np.ndarray], state: Path, **said: Any
) -> lbcompiler.Artifact:
    """weights: first_w and second_w, (WIDTH, WIDTH); data: batches (ROWS, WIDTH) of x, of which
    the last of up to eight judges the whole model."""
    model = parse_model(TEXT)
    for name, weight in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    feeds = [{"x": x.astype(np.float32)} for x in data]
    work = Work(state, jobs=1)
    return lbcompiler.compile(model, "cpu", calibration_data=feeds, work=work, **said)


def error_of(
    artifact: lbcompiler.Artifact, weights: Mapping[str, np.ndarray], x: np.ndarray
) -> float:
    """Noise over signal of y."""
    wanted = np.maximum(x @ weights["first_w"], 0) @ weights["second_w"]
    noise = np.square(artifact.load()(x=x.astype(np.float32))["y"] - wanted).sum()
    return float(noise / np.square(wanted).sum())
