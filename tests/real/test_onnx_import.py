"""The real models as exported, with every dynamic dimension: imported, run in float, beside
onnxruntime.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from lbcompiler.frontend.onnx import import_onnx
from lbcompiler.ir.model import Array, Model
from tests.frontend.float_runner import compile_float

pytestmark = pytest.mark.real
Built = Callable[[str], Path]
Sizes = dict[str, int]
DETECTION = "rapidocr_detection.onnx"

# file: layers by reason, sizes to run at, largest difference relative to the largest output
MODELS: dict[str, tuple[dict[str, int], list[Sizes], float]] = {
    "minilm.onnx": (
        {"": 36, "matmul of two activations": 12},
        [{"batch": 2, "length": 7}, {"batch": 1, "length": 1}],
        1e-5,
    ),
    "rapidocr_angle.onnx": (
        {"": 43, "grouped convolution": 11},
        [{"x_0": 1, "x_2": 48, "x_3": 192}, {"x_0": 2, "x_2": 48, "x_3": 100}],
        1e-5,
    ),
    DETECTION: (
        {"": 48, "grouped convolution": 14, "transposed convolution": 2},
        [
            {f"p2o_DynamicDimension_{i}": size for i, size in enumerate(sizes)}
            for sizes in ((1, 64, 96), (2, 32, 32))
        ],
        1e-5,
    ),
    "rapidocr_recognition.onnx": (
        {"": 33, "grouped convolution": 14, "matmul of two activations": 4},
        [
            {"p2o_DynamicDimension_0": n, "x_2": 48, "p2o_DynamicDimension_1": width}
            for n, width in ((1, 160), (3, 77))
        ],
        1e-4,
    ),
    "smollm2.onnx": (
        {"": 211, "matmul of two activations": 60},
        [{"batch": 1, "length": 9}, {"batch": 2, "length": 1}],
        1e-4,
    ),
}
SLOW = {name for name in MODELS if name != "minilm.onnx"}  # 30 s to 60 s of unscheduled TVM code


@pytest.mark.parametrize("name", MODELS)
def test_imports_with_its_layers(name: str, built: Built) -> None:
    model = import_onnx(built(name))
    counts = Counter(layer.reason.partition(" (")[0] for layer in model.layers.values())
    assert counts == MODELS[name][0]
    assert {dim.name for dim in model.dims} == set(MODELS[name][1][0])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS]
)
def test_equals_onnxruntime(name: str, built: Built, tmp_path: Path) -> None:
    path = built(name) if name != DETECTION else ending_in_logits(built(name), tmp_path / name)
    model = import_onnx(path)
    run = compile_float(model)
    session = onnxruntime.InferenceSession(str(path))
    _, all_sizes, tolerance = MODELS[name]
    for sizes in all_sizes:
        feeds = inputs(model, sizes)
        for got, want in zip(run(feeds), session.run(None, feeds), strict=True):
            assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def ending_in_logits(source: Path, path: Path) -> Path:
    """The detection model without its last sigmoid: noise is no text, every probability is below
    1e-5 there, and onnxruntime's sigmoid is off by 1e-7."""
    proto = onnx.load(source)
    (sigmoid,) = (node for node in proto.graph.node if node.op_type == "Sigmoid")
    del proto.graph.output[:]
    logits = onnx.helper.make_tensor_value_info(sigmoid.input[0], onnx.TensorProto.FLOAT, None)
    proto.graph.output.append(logits)
    onnx.save(proto, path)
    return path


def inputs(model: Model, sizes: Sizes) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for port in model.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in port.shape]
        if port.dtype == "float32":
            feeds[port.name] = rng.standard_normal(shape).astype(np.float32)
        else:  # ids of the vocabulary, or of a mask and of the one kind of segment
            highest = 1000 if "ids" in port.name and "type" not in port.name else 2
            feeds[port.name] = rng.integers(highest == 2, highest, shape).astype(port.dtype)
            if "type" in port.name:
                feeds[port.name] *= 0
    return feeds
