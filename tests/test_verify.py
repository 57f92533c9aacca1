"""Verification against real references; the compiled side is a stand-in with known errors."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lbcompiler.errors import ConfigError, InputError, ModelError
from lbcompiler.ir.model import Layer, Port
from lbcompiler.metrics import IDENTICAL_DB
from lbcompiler.references import OnnxReference, open_reference
from lbcompiler.verify import expected_rows, token_inputs, verify
from tests.verified import (
    BIAS,
    ERROR,
    LM,
    RNG,
    TABLE,
    W1,
    W2,
    Manifest,
    StandIn,
    compute_lm,
    language_model,
    save_ids,
)

IDS = RNG.integers(0, 11, (5, 7))


@pytest.mark.parametrize("external", [False, True])
def test_language_model(tmp_path: Path, external: bool) -> None:
    model = language_model(tmp_path / "lm.onnx", external=external)
    program = StandIn(LM, compute_lm())
    found = verify(program, model, save_ids(tmp_path / "d.npz", IDS), threads=1)
    figures = found.outputs["logits"]
    reference = np.maximum(TABLE[IDS] @ W1 + BIAS, 0) @ W2
    noise = reference.size * float(ERROR) ** 2
    assert figures["qsnr_db"] == pytest.approx(
        10 * math.log10((reference.astype(np.float64) ** 2).sum() / noise), abs=1e-3
    )
    assert figures["max_abs"] == pytest.approx(float(ERROR), rel=1e-4)
    assert figures["kl"] == pytest.approx(0, abs=1e-6)  # one shift for all logits changes nothing
    assert figures["top1"] == 1.0
    assert figures["perplexity"] == pytest.approx(figures["reference_perplexity"], rel=1e-5)
    assert (found.samples, program.runs) == (5, 2)
    assert found.layers is None


def test_per_layer_adds_bias_and_activation(tmp_path: Path) -> None:
    model = language_model(tmp_path / "lm.onnx", external=True)
    data = save_ids(tmp_path / "d.npz", IDS)
    found = verify(StandIn(LM, compute_lm()), model, data, per_layer=True, threads=1)
    assert found.layers is not None
    layers = dict(found.layers)
    assert list(layers) == ["/up/MatMul", "/head/MatMul"]
    assert layers["/up/MatMul"] > 120  # float32 in another order of sums
    assert layers["/head/MatMul"] == pytest.approx(found.outputs["logits"]["qsnr_db"])
    assert found.samples == 5


def test_what_computes_no_value_of_the_source_is_skipped_with_the_reason(tmp_path: Path) -> None:
    model, (up, head, *_) = language_model(tmp_path / "lm.onnx"), LM.layers
    manifest = replace(
        LM, layers=(up.without_output("scaled").without_output("turned"), replace(head, output=""))
    )
    data = save_ids(tmp_path / "d.npz", IDS)
    found = verify(StandIn(manifest, compute_lm()), model, data, per_layer=True, threads=1)
    assert found.layers == []
    assert found.skipped == [
        ("/up/MatMul", "scaled, turned"),
        ("/head/MatMul", "the source has no value that it computes"),
    ]
    assert verify(StandIn(manifest, compute_lm()), model, data, threads=1).skipped == []


def test_a_tapped_graph_output_stays_an_output(tmp_path: Path) -> None:
    reference = OnnxReference(language_model(tmp_path / "lm.onnx"), ("h", "logits"), 1)
    assert reference.outputs == ("logits",)
    assert set(reference.run({"input_ids": np.zeros((1, 2), np.int64)})) == {"h", "logits"}


def test_asked_metrics_and_limit(tmp_path: Path) -> None:
    model, data = language_model(tmp_path / "lm.onnx"), save_ids(tmp_path / "d.npz", IDS)
    program = StandIn(LM, compute_lm())
    found = verify(program, model, data, metrics=["perplexity", "cosine"], limit=2, threads=1)
    assert list(found.outputs["logits"]) == ["cosine", "perplexity", "reference_perplexity"]
    assert found.samples == 2


def test_progress_counts_runs(tmp_path: Path) -> None:
    model, data = language_model(tmp_path / "lm.onnx"), save_ids(tmp_path / "d.npz", IDS)
    seen: list[tuple[str, int, int]] = []
    verify(StandIn(LM, compute_lm()), model, data, progress=lambda *step: seen.append(step))
    assert seen == [("verify", 0, 2), ("verify", 1, 2), ("verify", 2, 2)]


def test_token_metrics_need_logits_over_the_ids() -> None:
    ids, logits = np.zeros((2, 3), np.int64), np.zeros((2, 3, 5), np.float32)
    mask = np.ones((2, 3), np.int64)
    found = token_inputs({"model.input_ids": ids, "attention_mask": mask}, logits)
    assert found is not None
    assert found[0] is ids
    assert found[1] is mask
    for feeds, output in [
        ({"input_ids": ids}, logits[0]),
        ({"input_ids": ids.astype(np.int32)}, logits),
        ({"input_ids": ids[:, :2]}, logits),
        ({"input_ids": ids + 5}, logits),  # ids that are no index of the last axis
        ({"x": ids}, logits),
        ({"input_ids": ids}, logits.astype(np.int64)),
    ]:
        assert token_inputs(feeds, output) is None


CONVOLUTION = RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)


def image_model(path: Path) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])],
        "image",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 5, 6])],
        [numpy_helper.from_array(CONVOLUTION, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def image_program(model: Path) -> StandIn:
    source = OnnxReference(model, (), 1)

    def compute(x: Any) -> Any:
        y = source.run({"x": x})["y"]
        return {"y": y}, [("conv", y.transpose(0, 2, 3, 1).reshape(-1, 4), None)]

    return StandIn(
        Manifest(
            (Port("x", "float32", (1, 2, 5, 6)),),
            (Port("y", "float32", (1, 4, 5, 6)),),
            (Layer("conv", "Conv", (4, 2, 3, 3), "y", True, realized="nvfp4"),),
        ),
        compute,
    )


def test_a_convolution_is_compared_pixel_by_pixel(tmp_path: Path) -> None:
    model = image_model(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", RNG.standard_normal((3, 2, 5, 6)).astype(np.float32))
    found = verify(image_program(model), model, tmp_path / "x.npy", per_layer=True, threads=1)
    assert found.layers == [("conv", IDENTICAL_DB)]
    assert found.outputs == {"y": {"qsnr_db": IDENTICAL_DB, "cosine": 1.0, "max_abs": 0.0}}
    assert found.samples == 3


def test_a_metric_that_cannot_apply_is_refused(tmp_path: Path) -> None:
    model = image_model(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones((1, 2, 5, 6), np.float32))
    with pytest.raises(ConfigError, match="kl cannot be measured"):
        verify(image_program(model), model, tmp_path / "x.npy", metrics=["qsnr", "kl"])


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        pytest.param((6, 8), (10, 6), id="linear"),
        pytest.param((6, 2, 3, 3), (2 * 5 * 7, 6), id="2-D convolution"),
        pytest.param((6, 2, 3), (2 * 5, 6), id="1-D convolution"),
    ],
)
def test_expected_rows(shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    spatial = {2: (2, 5, 6), 3: (2, 6, 5), 4: (2, 6, 5, 7)}[len(shape)]
    value = RNG.standard_normal(spatial).astype(np.float32)
    bias = np.arange(6, dtype=np.float32)
    layer = Layer("l", "Op", shape, "y", False)
    found = expected_rows(layer, value, bias)
    assert found.shape == rows
    where = (0, 1, 2) if len(shape) == 2 else (0, 2, 1, *(0,) * (len(shape) - 3))
    row = 1 if len(shape) < 4 else 1 * 7
    assert found[row, 2] == value[where] + np.float32(2)
    with_bias = Layer("l", "Op", shape, "y", True)
    np.testing.assert_array_equal(expected_rows(with_bias, value, bias) + bias, found)


def test_a_model_without_inputs(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "constant",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 6])],
        [numpy_helper.from_array(W1, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", unused=W1)
    manifest = Manifest((), (Port("y", "float32", (8, 6)),))
    program = StandIn(manifest, lambda: ({"y": W1}, []))
    found = verify(program, tmp_path / "m.onnx", tmp_path / "d.npz")
    assert (found.samples, found.outputs["y"]["max_abs"]) == (1, 0.0)


def test_another_model_is_no_reference(tmp_path: Path) -> None:
    lm, image = language_model(tmp_path / "lm.onnx"), image_model(tmp_path / "m.onnx")
    data = save_ids(tmp_path / "d.npz", IDS)
    program = StandIn(LM, compute_lm())
    with pytest.raises(ModelError, match=r"no value named 'h'.*not the model"):
        verify(program, image, data, per_layer=True)
    two = Manifest((*LM.inputs, Port("mask", "int64", ("b", "s"))), LM.outputs)
    np.savez(tmp_path / "two.npz", input_ids=IDS, mask=IDS)
    with pytest.raises(ModelError, match="the artifact has the inputs input_ids, mask"):
        verify(StandIn(two, compute_lm()), lm, tmp_path / "two.npz")
    with pytest.raises(InputError, match=r"onnxruntime cannot run"):
        verify(program, image, data)  # one input each, but another rank and dtype


def test_shapes_that_differ_name_the_output(tmp_path: Path) -> None:
    model, data = language_model(tmp_path / "lm.onnx"), save_ids(tmp_path / "d.npz", IDS)

    def compute(input_ids: Any) -> Any:
        return {"logits": np.zeros((*input_ids.shape, 3), np.float32)}, []

    with pytest.raises(ModelError, match=r"logits has shape \(4, 7, 3\).*\(4, 7, 11\)"):
        verify(StandIn(LM, compute), model, data)


def test_references_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.pt2"):
        (tmp_path / name).write_bytes(b"\x08not a model")
        with pytest.raises(ModelError, match=name):
            open_reference(tmp_path / name)
    with pytest.raises(ModelError, match=r"a\.onnx"):
        open_reference(tmp_path / "a.onnx", ["h"])
    with pytest.raises(ModelError, match="no model file"):
        open_reference(tmp_path / "gone.onnx")


@pytest.mark.parametrize("per_layer", [False, True])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, per_layer: bool) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = language_model(inner / "lm.onnx", external=True)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(e for e in tensor.external_data if e.key == "location").value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="escapes model directory"):
        open_reference(path, ["h"] if per_layer else [])


def test_torch_program(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def __init__(self) -> None:
            super().__init__()
            self.up = torch.nn.Linear(8, 6)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.up(x)), x.bfloat16()

    batch = torch.export.Dim("batch", min=1, max=64)
    net = Net()
    program = torch.export.export(net, (torch.ones(2, 8),), dynamic_shapes={"x": {0: batch}})
    path = tmp_path / "net.pt2"
    torch.export.save(program, path)
    linear = next(n.name for n in program.graph.nodes if "linear" in n.name)
    outputs = [str(name) for name in program.graph_signature.user_outputs]
    w, b = (p.detach().numpy() for p in (net.up.weight, net.up.bias))

    def compute(x: Any) -> Any:
        hidden = np.maximum(x @ w.T + b, 0) + ERROR
        rounded = torch.tensor(x).bfloat16().float().numpy()
        return dict(zip(outputs, (hidden, rounded), strict=True)), [("up", hidden, b)]

    layer = Layer("up", "linear", (6, 8), linear, True, realized="mxfp8", epilogue="relu")
    ports = tuple(
        Port(name, "float32", ("batch", n)) for name, n in zip(outputs, (6, 8), strict=True)
    )
    manifest = Manifest((Port("x", "float32", ("batch", 8)),), ports, (layer,))
    np.save(tmp_path / "x.npy", RNG.standard_normal((6, 8)).astype(np.float32))
    found = verify(StandIn(manifest, compute), path, tmp_path / "x.npy", per_layer=True, threads=1)
    assert found.outputs[outputs[0]]["max_abs"] == pytest.approx(float(ERROR), rel=1e-3)
    assert found.outputs[outputs[1]]["qsnr_db"] == IDENTICAL_DB
    assert found.layers is not None
    assert found.layers[0][1] == pytest.approx(found.outputs[outputs[0]]["qsnr_db"])
    with pytest.raises(InputError, match="torch cannot run"):
        open_reference(path).run({"x": np.ones((2, 7), np.float32)})
    whole = open_reference(path).run({"x": np.ones((3, 8), np.float32)})
    assert [whole[name].shape for name in outputs] == [(3, 6), (3, 8)]
    with pytest.raises(InputError, match="needs the input x"):
        open_reference(path).run({})


def test_torch_program_of_half_width_with_names_and_fixed_arguments(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
        def forward(self, x: Any, scale: float, *, y: Any) -> Any:
            return {"sum": x * scale + y, "x": x}

    half = torch.ones(2, 8, dtype=torch.bfloat16)
    program = torch.export.export(Net(), (half, 2.0), {"y": half})
    torch.export.save(program, tmp_path / "net.pt2")
    reference = open_reference(tmp_path / "net.pt2")
    assert reference.inputs == ("x", "y")
    array = np.full((2, 8), 1.25, np.float32)
    found = reference.run({"x": array, "y": array})
    assert found[reference.outputs[0]].tolist() == np.full((2, 8), 3.75).tolist()
    assert found[reference.outputs[1]].tolist() == array.tolist()


def test_onnx_model_of_half_width(tmp_path: Path) -> None:
    shape = ["b", 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "half.onnx")
    found = open_reference(tmp_path / "half.onnx").run({"x": np.ones((3, 2), np.float32)})
    assert found["y"].tolist() == [[2, 2]] * 3
