"""A decoder of two layers with a cache, in ONNX: small, and of the form that exporters write."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEADS, KEY_HEADS, DEPTH, WORDS = 2, 4, 2, 8, 50
WIDTH = HEADS * DEPTH
STATES = [f"{part}_{layer}" for layer in range(LAYERS) for part in ("key", "value")]


def write_decoder(path: Path) -> Path:
    """input_ids (batch, length), past_key_0, .. (batch, 2, past, 8) -> logits, present_key_0, .."""
    seed = np.random.default_rng(5)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, values: object, dtype: type = np.int64) -> str:
        weights.append(numpy_helper.from_array(np.array(values, dtype), name))
        return name

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def linear(x: str, name: str, outputs: int) -> str:
        values = seed.standard_normal((WIDTH, outputs)) / np.sqrt(WIDTH)
        return node("MatMul", [x, constant(f"{name}.weight", values, np.float32)], name)

    def heads(x: str, name: str, count: int) -> str:
        shape = constant(f"{name}.shape", [0, 0, count, DEPTH])
        return node(
            "Transpose", [node("Reshape", [x, shape], f"{name}.split")], name, perm=[0, 2, 1, 3]
        )

    def size(of: str, axis: int, name: str) -> str:
        shape = node("Shape", [of], f"{name}.shape", start=axis, end=axis + 1)
        return node("Squeeze", [shape], name)

    def repeated(x: str, name: str) -> str:
        wide = node("Unsqueeze", [x, constant(f"{name}.axis", [2])], f"{name}.wide")
        twice = node("Concat", [wide, wide], f"{name}.twice", axis=2)
        return node("Reshape", [twice, constant(f"{name}.heads", [0, HEADS, -1, DEPTH])], name)

    zero, one = constant("zero", 0), constant("one", 1)
    past = size("past_key_0", 2, "past")
    total = node("Add", [past, size("input_ids", 1, "length")], "total")
    queries = node(
        "Unsqueeze", [node("Range", [past, total, one], "at"), constant("last", [1])], "q"
    )
    is_future = node("Greater", [node("Range", [zero, total, one], "keys"), queries], "is_future")
    lowest = constant("lowest", np.finfo(np.float32).min, np.float32)
    mask = node(
        "Mul", [node("Cast", [is_future], "as_float", to=TensorProto.FLOAT), lowest], "mask"
    )
    x = node(
        "Gather",
        [constant("words", seed.standard_normal((WORDS, WIDTH)), np.float32), "input_ids"],
        "x",
    )
    for i in range(LAYERS):
        q = heads(linear(x, f"query.{i}", WIDTH), f"queries.{i}", HEADS)
        present = []
        for part in ("key", "value"):
            new = heads(linear(x, f"{part}.{i}", KEY_HEADS * DEPTH), f"{part}s.{i}", KEY_HEADS)
            grown = node("Concat", [f"past_{part}_{i}", new], f"present_{part}_{i}", axis=2)
            present.append(repeated(grown, f"{part}.{i}.repeated"))
        turned = node("Transpose", [present[0]], f"turned.{i}", perm=[0, 1, 3, 2])
        scale = constant(f"scale.{i}", DEPTH**-0.5, np.float32)
        scores = node("Mul", [node("MatMul", [q, turned], f"scores.{i}"), scale], f"scaled.{i}")
        share = node("Softmax", [node("Add", [scores, mask], f"masked.{i}")], f"share.{i}", axis=-1)
        mixed = node("MatMul", [share, present[1]], f"mixed.{i}")
        back = node("Transpose", [mixed], f"back.{i}", perm=[0, 2, 1, 3])
        joined = node("Reshape", [back, constant(f"joined.{i}", [0, 0, WIDTH])], f"joined.{i}.out")
        x = node("Add", [x, linear(joined, f"out.{i}", WIDTH)], f"x.{i}")
    linear(x, "logits", WORDS)

    def port(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    cache = ("batch", KEY_HEADS, "past", DEPTH)
    grown_cache = ("batch", KEY_HEADS, "past + length", DEPTH)
    graph = helper.make_graph(
        nodes,
        "cached",
        [ids, *(port(f"past_{name}", *cache) for name in STATES)],
        [
            port("logits", "batch", "length", WORDS),
            *(port(f"present_{name}", *grown_cache) for name in STATES),
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def past_of(length: int, batch: int = 1) -> dict[str, np.ndarray]:
    """Keys and values of a past, seeded."""
    seed = np.random.default_rng(length)
    shape = (batch, KEY_HEADS, length, DEPTH)
    return {f"past_{name}": seed.standard_normal(shape).astype(np.float32) for name in STATES}
