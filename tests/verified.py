"""A program whose errors are known, and the language model that it stands in for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lbcompiler.ir.model import Layer, Port

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((11, 8)).astype(np.float32)
W1 = RNG.standard_normal((8, 6)).astype(np.float32)
BIAS = RNG.standard_normal(6).astype(np.float32)
W2 = RNG.standard_normal((6, 11)).astype(np.float32)
ERROR = np.float32(0.125)


@dataclass(frozen=True)
class Manifest:
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    layers: tuple[Layer, ...] = ()


@dataclass
class StandIn:
    """A program that computes with numpy and tells of its layers."""

    manifest: Manifest
    compute: Callable[..., tuple[dict[str, Any], list[tuple[str, Any, Any]]]]
    runs: int = 0

    def run(self, feeds: Any) -> dict[str, Any]:
        self.runs += 1
        return self.compute(**feeds)[0]

    def observe(self, feeds: Any, observer: Callable[..., None]) -> dict[str, Any]:
        outputs, seen = self.compute(**feeds)
        layers = {layer.name: layer for layer in self.manifest.layers}
        for name, value, bias in seen:
            observer(layers[name], value, bias)
        return outputs


def language_model(path: Path, *, external: bool = False) -> Path:
    """input_ids -> Gather -> MatMul + bias -> Relu -> MatMul -> logits."""
    held = {"table": TABLE, "w1": W1, "b": BIAS, "w2": W2}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"]),
            helper.make_node("MatMul", ["x", "w1"], ["h"], "/up/MatMul"),
            helper.make_node("Add", ["h", "b"], ["hb"]),
            helper.make_node("Relu", ["hb"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["logits"], "/head/MatMul"),
        ],
        "lm",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", "s", 11])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


LM = Manifest(
    inputs=(Port("input_ids", "int64", ("b", "s")),),
    outputs=(Port("logits", "float32", ("b", "s", 11)),),
    layers=(
        Layer("/up/MatMul", "MatMul", (6, 8), "h", False, realized="mxint8", epilogue="relu"),
        Layer("/head/MatMul", "MatMul", (11, 6), "logits", True, realized="mxint8"),
        Layer("/float/MatMul", "MatMul", (11, 6), "other"),
    ),
)


def compute_lm(error: np.float32 = ERROR) -> Callable[..., Any]:
    def compute(input_ids: Any) -> Any:
        hidden = np.maximum(TABLE[input_ids] @ W1 + BIAS, 0)
        logits = hidden @ W2 + error
        return {"logits": logits}, [
            ("/up/MatMul", hidden.reshape(-1, 6), BIAS),
            ("/head/MatMul", logits.reshape(-1, 11), None),
        ]

    return compute


def save_ids(path: Path, ids: Any) -> Path:
    np.savez(path, input_ids=np.asarray(ids, np.int64))
    return path
