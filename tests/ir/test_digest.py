"""A model's digest changes with whatever changes its results, and with nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lbcompiler.frontend import import_model
from lbcompiler.ir.digest import digest_of

SHAPE = (8, 4)
DRAW = np.random.default_rng(0)
WEIGHT, OTHER = DRAW.standard_normal((2, *SHAPE), np.float32)


def model(weight: np.ndarray = WEIGHT, bias: float = 1.0, op: str = "Relu") -> onnx.ModelProto:
    """y = op(x w + bias)."""
    arrays = {"w": weight, "b": np.full(SHAPE[1], bias, np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"], name="linear"),
            helper.make_node("Add", ["z", "b"], ["s"]),
            helper.make_node(op, ["s"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (2, SHAPE[0]))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, SHAPE[1]))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def digest(source: object) -> str:
    return digest_of(import_model(source, {}))


def test_weights_constants_and_operators_count() -> None:
    found = [digest(m) for m in (model(), model(OTHER), model(bias=2.0), model(op="Sigmoid"))]
    assert len(set(found)) == len(found)
    assert digest(model()) == found[0]


def test_external_data_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(model(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    first = digest(path)
    file, told = tmp_path / "w.bin", path.read_bytes()
    file.write_bytes(file.read_bytes().replace(WEIGHT.tobytes(), OTHER.tobytes()))
    assert path.read_bytes() == told
    assert digest(path) != first
    assert first == digest(model())


def test_another_process_finds_the_same(tmp_path: Path) -> None:
    """Nothing in it depends on addresses or on the seed of hashes."""
    path = tmp_path / "m.onnx"
    onnx.save_model(model(), path)
    code = (
        "from lbcompiler.frontend import import_model; from lbcompiler.ir.digest import digest_of; "
        f"print(digest_of(import_model({str(path)!r}, {{}})))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == digest(path)
