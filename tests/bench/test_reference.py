"""The reference itself: cut without rounding it is onnxruntime, rounded it is a rewritten model."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from lbcompiler.formats import format_named
from tests.bench.fake_quantized import Array, Following, Quantization, qsnr
from tests.bench.reference import Reference, reference_outputs

MODELS = Path(__file__).parents[2] / "models"
TINY_LM = MODELS / "tiny_lm.onnx"
SAME_ARITHMETIC = 100.0  # dB: float32 sums in another order, over a few dozen layers


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def saved(
    folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, Array], rank: int
) -> tuple[Path, onnx.ModelProto]:
    """A model from x to y; its file and itself."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None] * rank)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx", model


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def batch_norm(source: str, channels: int) -> tuple[onnx.NodeProto, dict[str, Array]]:
    parts = {name: normal(channels) for name in ("gamma", "beta", "mean")}
    parts["variance"] = np.square(normal(channels)) + np.float32(0.1)
    return helper.make_node("BatchNormalization", [source, *parts], ["y"], "norm"), parts


CONVOLUTIONS: list[Any] = [
    pytest.param((5, 3, 3, 3), {}, (2, 3, 9, 7), id="3x3"),
    pytest.param((5, 3, 1, 1), {}, (2, 3, 9, 7), id="1x1"),
    pytest.param(
        (5, 3, 3, 2),
        {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]},
        (2, 3, 9, 7),
        id="strided, padded, dilated",
    ),
    pytest.param((5, 3, 4), {"strides": [3], "pads": [1, 2]}, (2, 3, 11), id="one-dimensional"),
    pytest.param((6, 1, 3, 3), {"group": 3}, (2, 3, 9, 7), id="grouped stays float"),
]


@pytest.mark.parametrize(("shape", "attributes", "x_shape"), CONVOLUTIONS)
@pytest.mark.parametrize("is_normalized", [False, True])
def test_a_cut_convolution_is_onnxruntimes(
    tmp_path: Path, shape: Any, attributes: Any, x_shape: Any, is_normalized: bool
) -> None:
    weights = {"w": normal(*shape), "b": normal(shape[0])}
    made = "c" if is_normalized else "y"
    nodes = [helper.make_node("Conv", ["x", "w", "b"], [made], "conv", **attributes)]
    if is_normalized:
        norm, parts = batch_norm("c", shape[0])
        nodes.append(norm)
        weights |= parts
    path, model = saved(tmp_path, nodes, weights, len(x_shape))
    feeds = {"x": normal(*x_shape)}
    reference = Reference(path, Quantization("none"))
    assert len(reference.layers) == (attributes.get("group", 1) == 1)
    assert qsnr(run(model, feeds)["y"], reference(feeds)["y"]) > SAME_ARITHMETIC


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "g", transB=1, alpha=0.5, beta=2.0)],
        [
            helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "wt"], ["m"], "m"),
            helper.make_node("Add", ["m", "b"], ["y"]),
        ],
    ],
)
def test_a_cut_linear_is_onnxruntimes(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    path, model = saved(tmp_path, nodes, {"w": normal(6, 40), "b": normal(6)}, 2)
    feeds = {"x": normal(5, 40)}
    reference = Reference(path, Quantization("none"))
    assert list(reference.layers.values()) == [(6, 40)]
    assert qsnr(run(model, feeds)["y"], reference(feeds)["y"]) > SAME_ARITHMETIC


def tokens(batch: int = 2, length: int = 24) -> dict[str, Array]:
    return {"input_ids": np.load(MODELS / "tiny_lm_sample.npz")["input_ids"][:batch, :length]}


def test_weight_only_is_the_model_with_rounded_initializers() -> None:
    model, fmt = onnx.load(TINY_LM), format_named("nvfp4")
    used = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    for tensor in model.graph.initializer:
        if tensor.name in used:
            w = numpy_helper.to_array(tensor).T
            rounded = fmt.dequantize(fmt.quantize(w)).T
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rounded), tensor.name))
    ours = reference_outputs(TINY_LM, tokens(), format="nvfp4", act_format="none")
    assert qsnr(run(model, tokens())["logits"], ours["logits"]) > SAME_ARITHMETIC


def test_tiny_lm_has_its_29_linears_and_exclude_keeps_one_float() -> None:
    everything = Reference(TINY_LM, Quantization("mxfp4", "mxfp4"))
    assert len(everything.layers) == 29
    assert everything.layers["layers.0.down"] == (160, 416)
    without_head = Reference(TINY_LM, Quantization("mxfp4", "mxfp4"), exclude={"head"})
    assert set(everything.layers) - set(without_head.layers) == {"head"}
    logits = [reference(tokens())["logits"] for reference in (everything, without_head)]
    assert 0 < qsnr(*logits) < 40


@pytest.mark.parametrize("fmt", ["nvfp4", "mxint8"])
def test_a_row_does_not_depend_on_its_batch(fmt: str) -> None:
    reference = Reference(TINY_LM, Quantization(fmt, fmt))
    alone, together = (reference(tokens(batch, 4))["logits"][0] for batch in (1, 3))
    assert qsnr(alone, together) > SAME_ARITHMETIC


def test_following_rounds_what_it_is_given(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "m")]
    path, _ = saved(tmp_path, nodes, {"w": normal(32, 4)}, 3)
    reference = Reference(path, Quantization("mxint8", "mxint8"))
    x, other = normal(2, 3, 32), normal(2, 3, 33)[..., :32]
    follow = Following({"m": other.reshape(6, 32)})
    np.testing.assert_array_equal(reference({"x": x}, follow)["y"], reference({"x": other})["y"])
    assert follow.own_db == {"m": qsnr(x, other)}
