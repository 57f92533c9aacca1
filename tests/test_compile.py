"""From a model file to a running artifact: small, every format, tails in every dimension."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import lbcompiler
from lbcompiler.compiler import with_formats
from lbcompiler.config import make_config
from lbcompiler.errors import ArtifactError, ConfigError, InputError, ModelError
from lbcompiler.formats import FORMATS
from lbcompiler.frontend import import_model
from lbcompiler.ir import ops
from lbcompiler.ir.dump import no_dump
from lbcompiler.targets import targets_named
from lbcompiler.verify import verify
from tests.bench.agreement import agreement
from tests.bench.fake_quantized import Quantization
from tests.bench.reference import Reference

SAME_ARITHMETIC = 100.0  # dB: float32 rounds at 144 dB; a sum of 360 terms loses 26 of them
SEED = np.random.default_rng(3)


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    fan_in = int(np.prod(shape[1:])) or 1
    values = SEED.standard_normal(shape) / np.sqrt(fan_in)
    return numpy_helper.from_array(values.astype(np.float32), name)


def write_model(path: Path) -> Path:
    """A convolution, a pooling to rows, two linears; K of 27, 40 and 70, N of 40, 70 and 9."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c"], "conv", pads=[1] * 4, strides=[2, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w1", "b1"], ["g"], "up", transB=1),
        helper.make_node("Sigmoid", ["g"], ["s"], "sigmoid"),
        helper.make_node("MatMul", ["s", "w2"], ["y"], "down"),
    ]
    weights = [
        tensor("w0", 40, 3, 3, 3),
        tensor("b0", 40),
        tensor("w1", 70, 40),
        tensor("b1", 70),
        tensor("w2", 70, 9),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", 11])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 9])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small.onnx")


@pytest.fixture(scope="module")
def artifact(model: Path) -> lbcompiler.Artifact:
    return lbcompiler.compile(
        model, format="nvfp4", inputs={"x": "(1..4)x3x(2..32)x11"}, output=model.parent / "a.lbc"
    )


@pytest.fixture(scope="module")
def program(artifact: lbcompiler.Artifact) -> lbcompiler.Program:
    return artifact.load(threads=1)


def image(n: int = 2, h: int = 13) -> np.ndarray:
    return np.random.default_rng(n * h).standard_normal((n, 3, h, 11)).astype(np.float32)


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_computes_its_quantization(fmt: str, weights_only: bool, model: Path) -> None:
    act = "none" if weights_only else fmt
    program = lbcompiler.compile(model, format=fmt, act_format=act).load(threads=1)
    reference = Reference(model, Quantization(fmt, act))
    found = agreement(program, reference, {"x": image()})
    assert found.output_db > SAME_ARITHMETIC
    assert found.worst_input[1] > SAME_ARITHMETIC, found.worst_input


@pytest.mark.parametrize("shape", [(1, 2), (1, 3), (4, 32), (3, 7)])
def test_sizes_change_from_call_to_call(
    program: lbcompiler.Program, shape: tuple[int, int], model: Path
) -> None:
    reference = Reference(model, Quantization("nvfp4", "nvfp4"))
    assert agreement(program, reference, {"x": image(*shape)}).output_db > SAME_ARITHMETIC


def test_a_row_does_not_depend_on_its_batch(program: lbcompiler.Program) -> None:
    x = image(4)
    together = program(x)["y"]
    np.testing.assert_array_equal(
        together, np.concatenate([program(x[i : i + 1])["y"] for i in range(4)])
    )


def test_the_result_does_not_depend_on_threads(
    artifact: lbcompiler.Artifact, program: lbcompiler.Program
) -> None:
    expected = program(image())["y"]
    np.testing.assert_array_equal(artifact.load(threads=2)(image())["y"], expected)


def test_each_program_keeps_its_own_number_of_threads(artifact: lbcompiler.Artifact) -> None:
    from lbcompiler.targets.cpu import threads

    first, second = artifact.load(threads=2), artifact.load(threads=1)
    for program, wanted in ((first, 2), (second, 1), (first, 2)):
        program(image())
        assert threads.ensure_threads() == min(wanted, len(threads.available_cores()))


def test_the_manifest_says_what_every_layer_became(artifact: lbcompiler.Artifact) -> None:
    layers = {layer.name: layer for layer in artifact.manifest.layers}
    assert list(layers) == ["conv", "up", "down"]
    assert [layer.epilogue for layer in layers.values()] == ["relu", "sigmoid", "none"]
    assert [layer.bias for layer in layers.values()] == [True, True, False]
    assert (
        {layer.requested for layer in layers.values()}
        == {"nvfp4"}
        == {layer.realized for layer in layers.values()}
    )
    assert artifact.manifest.totals.quantized == 3
    held = set(artifact.manifest.parameters)
    assert all(set(layer.weights) <= held and layer.weights for layer in layers.values())
    assert [(d.name, d.low, d.high) for d in artifact.manifest.dims] == [("n", 1, 4), ("h", 2, 32)]


def test_excluded_layers_stay_float_and_agree(model: Path) -> None:
    artifact = lbcompiler.compile(model, format="mxfp4", exclude=["conv", "up"])
    by_name = {layer.name: layer.realized for layer in artifact.manifest.layers}
    assert by_name == {"conv": "float32", "up": "float32", "down": "mxfp4"}
    reference = Reference(model, Quantization("mxfp4", "mxfp4"), ["conv", "up"])
    assert (
        agreement(artifact.load(threads=1), reference, {"x": image()}).output_db > SAME_ARITHMETIC
    )


def test_observe_sees_every_linear_in_order(program: lbcompiler.Program) -> None:
    seen: list[tuple[str, tuple[int, ...], bool]] = []
    y = program.observe(
        {"x": image()},
        lambda layer, out, bias: seen.append((layer.name, out.shape, bias is not None)),
    )
    assert seen == [
        ("conv", (2 * 7 * 11, 40), True),
        ("up", (2, 70), True),
        ("down", (2, 9), False),
    ]
    np.testing.assert_array_equal(y["y"], program(image())["y"])


def test_inputs_by_name_by_position_and_by_dlpack(program: lbcompiler.Program) -> None:
    class Foreign:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    expected = program(image())["y"]
    for result in (program(x=image()), program.run({"x": image()}), program(Foreign(image()))):
        np.testing.assert_array_equal(result["y"], expected)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"z": image()}, r"no input 'z'.*x \(float32 nx3xhx11\)"),
        ({}, r"input 'x' is missing"),
        ({"x": image().astype(np.float64)}, r"is float64, the model takes float32"),
        ({"x": image()[0]}, r"has shape 3x13x11, the model takes nx3xhx11"),
        ({"x": image()[..., :10]}, r"has shape 2x3x13x10"),
        ({"x": image(5)}, r"dimension 'n' of input 'x' is 5, outside 1..4"),
        ({"x": image(1, 33)}, r"dimension 'h' of input 'x' is 33, outside 2..32"),
        ({"x": object()}, r"is no array"),
    ],
)
def test_a_wrong_input_is_refused(program: lbcompiler.Program, feeds: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        program.run(feeds)


def test_nan_reaches_the_output_whether_or_not_the_activation_is_fused(model: Path) -> None:
    x = image()
    x[0, 0, 0, 0] = np.nan
    for act in ("nvfp4", "none"):
        y = lbcompiler.compile(model, format="nvfp4", act_format=act).load(threads=1)(x)["y"]
        assert np.isnan(y[0]).all()
        assert np.isfinite(y[1]).all()


def test_too_many_and_doubled_inputs_are_refused(program: lbcompiler.Program) -> None:
    with pytest.raises(InputError, match=r"2 inputs were given"):
        program(image(), image())
    with pytest.raises(InputError, match=r"by position and by name"):
        program(image(), x=image())


def test_a_fixed_shape_is_fixed(model: Path) -> None:
    program = lbcompiler.compile(model, format="mxint8", inputs={"x": "1x3x8x11"}).load(threads=1)
    assert program.manifest.inputs[0].shape == [1, 3, 8, 11]
    assert program(image(1, 8))["y"].shape == (1, 9)
    with pytest.raises(InputError, match=r"has shape 2x3x8x11"):
        program(image(2, 8))


@pytest.mark.parametrize("isa", ["avx2", "generic"])
def test_every_instruction_set_gives_the_same_linears(isa: str, model: Path) -> None:
    artifact = lbcompiler.compile(model, target=f"cpu:{isa}", format="mxfp4")
    assert artifact.manifest.target.isa == isa
    reference = Reference(model, Quantization("mxfp4", "mxfp4"))
    found = agreement(artifact.load(threads=1), reference, {"x": image()})
    assert found.output_db > SAME_ARITHMETIC


def test_weights_that_are_not_finite_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    path = write_model(tmp_path / "bad.onnx")
    model = onnx.load(path)
    broken = numpy_helper.to_array(model.graph.initializer[2]).copy()
    broken[0, 0] = np.nan
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(broken, "w1"))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"layer 'up' holds NaN"):
        lbcompiler.compile(path, format="nvfp4", output=tmp_path / "bad.lbc")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]
    lbcompiler.compile(path, format="nvfp4", exclude="up", output=tmp_path / "bad.lbc")


def test_a_model_in_memory(model: Path) -> None:
    artifact = lbcompiler.compile(onnx.load(model), format="nvint4", act_format="none")
    assert artifact.manifest.source.sha256 == ""
    assert artifact.load(threads=1)(image())["y"].shape == (2, 9)


def test_an_artifact_without_output_goes_with_its_object(model: Path) -> None:
    artifact = lbcompiler.compile(model, format="mxint8", act_format="none")
    path = artifact.path
    assert path.is_dir()
    del artifact
    gc.collect()
    assert not path.exists()


def test_the_ir_is_dumped_after_every_pass(model: Path, tmp_path: Path) -> None:
    lbcompiler.compile(model, format="nvfp4", dump_ir=tmp_path / "ir")
    names = sorted(p.stem for p in (tmp_path / "ir").iterdir())
    passes = [name.partition("-")[2] for name in names]
    assert passes[0] == "input"
    assert passes[-3:] == ["fused", "scheduled", "planned"]
    assert (
        passes.index("quantize_weights") < passes.index("insert_qdq") < passes.index("fuse_linear")
    )
    assert (
        "lbc.linear" in (tmp_path / "ir" / f"{names[passes.index('fuse_linear')]}.py").read_text()
    )


def test_a_layer_with_a_folded_batch_norm_is_compared_behind_it(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 17]>
    g (float[n, 3, 8, 8] x) => (float[n, 8, 8, 8] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = BatchNormalization (c, gain, shift, mean, variance)
        y = Relu (b) }"""
    proto = onnx.parser.parse_model(text)
    vectors = [tensor(name, 8) for name in ("gain", "shift", "mean")]
    variance = numpy_helper.from_array(np.full(8, 2, np.float32), "variance")
    proto.graph.initializer.extend([tensor("w", 8, 3, 3, 3), *vectors, variance])
    onnx.save(proto, tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(3).standard_normal((2, 3, 8, 8), np.float32))
    program = lbcompiler.compile(tmp_path / "m.onnx", format="mxint8").load(threads=1)
    (layer,) = program.manifest.layers
    assert (layer.output, layer.output_has_bias, layer.epilogue) == ("b", True, "relu")
    found = verify(program, tmp_path / "m.onnx", tmp_path / "x.npy", per_layer=True, threads=1)
    assert found.layers is not None
    ((_, decibels),) = found.layers
    assert decibels > 30  # mxint8 rounds at about 40; without the batch norm it is near 0


def test_the_plan_is_what_compile_does(model: Path, artifact: lbcompiler.Artifact) -> None:
    planned = lbcompiler.plan(model, lbcompiler.CompileConfig(format="nvfp4"))
    done = {layer.name: (layer.realized, layer.kernel) for layer in artifact.manifest.layers}
    assert {layer.name: (layer.realized, layer.kernel) for layer in planned} == done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "fp5"}, r"fp5"),
        ({"target": "tpu"}, r"unknown target 'tpu'"),
        ({"target": "cpu:sse9"}, r"sse9"),
        ({"exclude": "nothing_here"}, r"matches no layer"),
        ({"scale_rule": "absmax"}, r"does not go with mxint8"),
        ({"inputs": {"z": "1"}}, r"z"),
        ({"inputs": {"x": "0x3x8x11"}}, r"empty dimension"),
    ],
)
def test_what_cannot_be_asked_is_refused(options: Any, message: str, model: Path) -> None:
    with pytest.raises((ConfigError, ModelError, InputError), match=message):
        lbcompiler.compile(model, **{"format": "mxint8", **options})


def test_an_artifact_of_another_machine_is_refused(
    artifact: lbcompiler.Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lbcompiler.targets.cpu import isa

    monkeypatch.setattr(isa, "_host", lambda field: "")
    with pytest.raises(
        ArtifactError, match=r"compiled for .*, which this machine lacks: .*generic"
    ):
        artifact.load()


def test_epilogues_of_passes_and_kernels_are_the_same() -> None:
    from lbcompiler.passes.fuse_linear import EPILOGUE_OF
    from lbcompiler.targets.cpu.epilogue import ACTIVATIONS

    assert {"none", *EPILOGUE_OF.values()} == set(ops.EPILOGUES) == set(ACTIVATIONS)


def test_a_scale_rule_that_the_target_lacks_is_refused_before_anything_is_measured() -> None:
    (cpu,) = targets_named("cpu")
    poorer = replace(cpu, activation_rules=frozenset({"absmax"}))
    config = make_config({"format": "nvfp4", "act_scale_rule": "four_over_six"})
    imported = import_model("models/tiny_lm.onnx", {})
    with pytest.raises(ConfigError, match=r"cpu cannot quantize activations .* four_over_six"):
        with_formats(imported, config, (poorer,), no_dump)
