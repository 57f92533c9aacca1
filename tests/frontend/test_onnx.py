"""Small ONNX graphs: what becomes a layer, which shapes stay dynamic, what happens to constants."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from lbcompiler.errors import ConfigError, ModelError
from lbcompiler.ir.model import Array, Dim, Model
from tests.frontend.onnx_runner import Compiled, imported

RNG = np.random.default_rng(7)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def graph(text: str, opset: int = 20, **constants: Array) -> onnx.ModelProto:
    """The model of a graph in ONNX's text form, with numpy initializers."""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return proto


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def expected(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """As written: its optimizer would quantize the activations beside a dequantized weight."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return [np.asarray(out) for out in session.run(None, dict(feeds))]


def check(
    proto: onnx.ModelProto, folder: Path, *runs: Mapping[str, Array], shapes: Any = None
) -> Model:
    """The model computes what onnxruntime does for each of the feeds."""
    model = imported(proto, folder, shapes)
    compiled = Compiled([model])
    for feeds in runs:
        for got, want in zip(compiled.run(0, feeds), expected(proto, feeds), strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, **TOLERANCE)
    return model


MATMULS = {
    "weight at the right": ("y = MatMul(x, w)", (8, 4), ""),
    "weight at the left": ("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul(w, t)", (4, 8), ""),
    "through a transpose": ("t = Transpose(w) y = MatMul(x, t)", (4, 8), ""),
    "through two transposes": ("t = Transpose(w) u = Transpose(t) y = MatMul(x, u)", (8, 4), ""),
    "through identity and cast": (
        "i = Identity(w) t = Cast <to = 1> (i) y = MatMul(x, t)",
        (8, 4),
        "",
    ),
    "with a leading 1": ("y = MatMul(x, w)", (1, 8, 4), ""),
    "batched": ("y = MatMul(x, w)", (2, 8, 4), "batched constant weight [2, 8, 4]"),
    "einsum": ('y = Einsum <equation = "bsk,kn->bsn"> (x, w)', (8, 4), ""),
}


@pytest.mark.parametrize("case", MATMULS)
def test_a_constant_matmul_is_a_layer(case: str, tmp_path: Path) -> None:
    text, shape, reason = MATMULS[case]
    proto = graph(f"g (float[2, s, 8] x) => (float[a, b, c] y) {{ {text} }}", w=normal(*shape))
    model = check(proto, tmp_path, {"x": normal(2, 5, 8)}, {"x": normal(2, 1, 8)})
    (layer,) = model.layers.values()
    assert (layer.shape, layer.reason) == ((4, 8), reason)
    assert all(weight.dtype == "float32" for weight in model.weights.values())


def test_a_weight_transposed_twice_is_the_stored_one(tmp_path: Path) -> None:
    text = "g (float[s, 8] x) => (float[s, 4] y) { t = Transpose(w) y = MatMul(x, t) }"
    model = imported(graph(text, w=normal(4, 8)), tmp_path)
    assert list(model.weights) == ["w"]


GEMMS = {
    "bias": ("<transB = 1> (x, w, c)", (4,), True),
    "row bias, beta": ("<transB = 1, beta = 0.5> (x, w, c)", (1, 4), True),
    "alpha": ("<transB = 1, alpha = 2.0> (x, w, c)", (4,), True),
    "scalar bias": ("<transB = 1> (x, w, c)", (), False),
    "beta 0": ("<transB = 1, beta = 0.0> (x, w, c)", (4,), False),
}


@pytest.mark.parametrize("case", GEMMS)
def test_gemm(case: str, tmp_path: Path) -> None:
    call, shape, has_bias = GEMMS[case]
    proto = graph(
        f"g (float[n, 8] x) => (float[n, 4] y) {{ y = Gemm {call} }}",
        w=normal(4, 8),
        c=normal(*shape),
    )
    model = check(proto, tmp_path, {"x": normal(3, 8)}, {"x": normal(1, 8)})
    (layer,) = model.layers.values()
    assert (layer.op, layer.shape, layer.output_has_bias) == ("Gemm", (4, 8), has_bias)


def test_two_activations_stay_float_and_say_so(tmp_path: Path) -> None:
    proto = graph(
        "g (float[b, s, 8] x, float[b, 8, s] y) => (float[b, s, s] z) { z = MatMul(x, y) }"
    )
    model = check(proto, tmp_path, {"x": normal(2, 3, 8), "y": normal(2, 8, 3)})
    assert [layer.reason for layer in model.layers.values()] == ["matmul of two activations"]


CONVOLUTIONS = {
    "plain": ("pads = [1, 1, 1, 1], strides = [2, 2]", (6, 4, 3, 3), ""),
    "grouped": ("group = 2", (6, 2, 3, 3), "grouped convolution (groups=2)"),
    "same upper": ('auto_pad = "SAME_UPPER", strides = [2, 2]', (6, 4, 3, 3), ""),
    "same lower": ('auto_pad = "SAME_LOWER", strides = [2, 3]', (6, 4, 2, 4), ""),
    "dilated": ("dilations = [2, 1], pads = [0, 1, 2, 3]", (6, 4, 3, 3), ""),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_of_a_dynamic_image(case: str, tmp_path: Path) -> None:
    attributes, shape, reason = CONVOLUTIONS[case]
    text = (
        f"g (float[n, 4, h, w] x) => (float[n, 6, p, q] y) {{ y = Conv <{attributes}> (x, k, c) }}"
    )
    proto = graph(text, k=normal(*shape), c=normal(6))
    model = check(proto, tmp_path, {"x": normal(2, 4, 9, 12)}, {"x": normal(1, 4, 8, 7)})
    (layer,) = model.layers.values()
    assert (layer.shape, layer.reason, layer.output_has_bias) == (shape, reason, True)


def test_a_1d_convolution_is_a_layer_and_a_3d_one_is_not(tmp_path: Path) -> None:
    text = """g (float[n, 3, t] x) => (float[n, 5, u] y) {
        y = Conv <strides = [2], pads = [1, 1]> (x, k) }"""
    model = check(graph(text, k=normal(5, 3, 3)), tmp_path, {"x": normal(2, 3, 11)})
    assert [(x.shape, x.reason) for x in model.layers.values()] == [((5, 3, 1, 3), "")]
    text = "g (float[n, 3, 4, 4, 4] x) => (float[n, 5, a, b, c] y) { y = Conv (x, k) }"
    model = check(graph(text, k=normal(5, 3, 2, 2, 2)), tmp_path, {"x": normal(2, 3, 4, 4, 4)})
    assert [x.reason for x in model.layers.values()] == ["3-D convolution"]


DYNAMIC = {  # each on x (b, s, 8), run at (2, 5), (1, 1) and (3, 4)
    "reshape to heads and back": """
        h = Reshape(x, heads) t = Transpose <perm = [0, 2, 1, 3]> (h)
        u = Transpose <perm = [0, 2, 1, 3]> (t) y = Reshape(u, flat)""",
    "shape arithmetic": """
        d = Shape(x) b = Gather(d, zero) s = Gather(d, one) n = Mul(b, s)
        nn = Unsqueeze(n, zeros) p = Concat <axis = 0> (nn, eight) y = Reshape(x, p)""",
    "the last position": "y = Gather <axis = 1> (x, last)",
    "all but the last": "y = Slice(x, zeros, last1, ones)",
    "backward": "y = Slice(x, last1, far, ones, last1)",
    "every second": "y = Slice(x, zeros, end, ones, two)",
    "causal mask": """
        d = Shape <start = 1, end = 2> (x) s = Squeeze(d) r = Range(zero, s, one)
        row = Unsqueeze(r, zeros) column = Unsqueeze(r, ones)
        keep = LessOrEqual(row, column) y = Cast <to = 1> (keep)""",
    "expand by its own shape": """
        d = Shape(x) m = ReduceMean <keepdims = 1> (x, ones) y = Expand(m, d)""",
    "tile": "y = Tile(x, tiles)",
    "pad at the end": "y = Pad(x, pads)",
    "pad by reflection": 'y = Pad <mode = "edge"> (x, pads)',
    "flatten": "y = Flatten <axis = 2> (x)",
    "concat with itself": "y = Concat <axis = 1> (x, x)",
    "split": "a, c = Split <axis = 2> (x, halves) y = Mul(a, c)",
    "running sum": "y = CumSum(x, one)",
    "position of the largest": "y = ArgMax <axis = 1> (x)",
    "constant of shape": """
        d = Shape(x) z = ConstantOfShape <value = float[1] {2.0}> (d) y = Add(x, z)""",
    "where on a shape": """
        d = Shape(x) neg = Equal(d, minus) p = Where(neg, d, d) y = Reshape(x, p)""",
    "triangle": "t = Transpose <perm = [0, 2, 1]> (x) m = MatMul(x, t) y = Trilu <upper = 0> (m)",
    "mean of the size": """
        d = Shape <start = 1, end = 2> (x) f = Cast <to = 1> (d) t = ReduceSum(x, ones)
        y = Div(t, f)""",
    "upsampled": """
        i = Unsqueeze(x, zeros)
        y = Resize <mode = "linear", coordinate_transformation_mode = "asymmetric">
            (i, , scales)""",
}
NUMBERS = {
    "heads": [0, 0, 2, -1], "flat": [0, -1, 8], "zero": 0, "one": 1, "zeros": [0], "ones": [1],
    "eight": [8], "last": -1, "last1": [-1], "far": [-(2**63)], "end": [2**63 - 1], "two": [2],
    "tiles": [1, 3, 2], "pads": [0, 1, 0, 0, 2, 1], "halves": [4, 4], "minus": [-1, -1, -1],
}  # fmt: skip


@pytest.mark.parametrize("case", DYNAMIC)
def test_dynamic_shapes(case: str, tmp_path: Path) -> None:
    constants = {name: np.array(value, np.int64) for name, value in NUMBERS.items()}
    constants["scales"] = np.array([1, 1, 2, 1.5], np.float32)
    words = set(re.findall(r"\w+", DYNAMIC[case]))
    used = {name: array for name, array in constants.items() if name in words}
    kind = "int64" if "ArgMax" in DYNAMIC[case] else "float"
    proto = graph(f"g (float[b, s, 8] x) => ({kind} y) {{ {DYNAMIC[case]} }}", **used)
    model = check(proto, tmp_path, *({"x": normal(b, s, 8)} for b, s in ((2, 5), (1, 1), (3, 4))))
    assert model.dims == (Dim("b"), Dim("s"))


def test_indices_from_data_wrap_and_are_clamped(tmp_path: Path) -> None:
    text = "g (int64[n] i) => (float[n, 4] y) { y = Gather(table, i) }"
    table = normal(6, 4)
    model = imported(graph(text, table=table), tmp_path)
    (got,) = Compiled([model]).run(0, {"i": np.array([0, -1, -6, 5, 77, -77])})
    np.testing.assert_array_equal(got, table[[0, 5, 0, 5, 5, 0]])
    assert list(model.weights) == ["table"]


def test_what_the_model_implies_about_a_dimension_bounds_it(tmp_path: Path) -> None:
    """A table of 16 positions added to s of them: s is at most 16."""
    text = """g (float[s, 4] x) => (float[s, 4] y) {
        d = Shape <start = 0, end = 1> (x) t = Slice(table, zeros, d, zeros) y = Add(x, t) }"""
    proto = graph(text, table=normal(16, 4), zeros=np.array([0]))
    model = check(proto, tmp_path, {"x": normal(16, 4)}, {"x": normal(1, 4)})
    assert model.dims == (Dim("s", 1, 16),)


def test_input_shapes_fix_and_bound(tmp_path: Path) -> None:
    text = "g (float[b, s] x, float[b, s] m) => (float[b, s] y) { y = Mul(x, m) }"
    model = imported(graph(text), tmp_path, {"x": [2, Dim("length", 1, 64)]})
    assert [port.shape for port in model.inputs] == [(2, "length"), (2, "length")]
    assert model.outputs[0].shape == (2, "length")
    assert model.dims == (Dim("length", 1, 64),)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": [1, 2]}, "has no input 'q'"),
        ({"x": [1, 2, 3]}, "has 2 dimensions"),
        ({"x": ["n", 5]}, "Dimension 1 .* is 4"),
        ({"x": [0, 4], "z": [3]}, "is one dimension"),
        ({"x": [-2, 4]}, "cannot be -2"),
    ],
)
def test_shapes_that_contradict_the_model(shapes: Any, message: str, tmp_path: Path) -> None:
    proto = graph("g (float[n, 4] x, float[n] z) => (float[n, 4] y) { y = Neg(x) }")
    with pytest.raises(ConfigError, match=message):
        imported(proto, tmp_path, shapes)


def test_an_open_dimension_without_a_name_is_its_own(tmp_path: Path) -> None:
    """Exporters write '?' and -1; two of them need not be equal."""
    proto = graph("g (float[n, m] x) => (float[n, m] y) { y = Neg(x) }")
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[1].dim_param = "?", "?"
    model = imported(proto, tmp_path)
    assert model.inputs[0].shape == ("x_0", "x_1")


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_other_floats_are_computed_in_float32(dtype: str, tmp_path: Path) -> None:
    text = f"g ({dtype}[n, 8] x) => ({dtype}[n, 4] y) {{ y = MatMul(x, w) }}"
    proto = graph(text)
    code = {"float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE}.get(
        dtype, TensorProto.BFLOAT16
    )
    numpy_type = helper.tensor_dtype_to_np_dtype(code)
    x, w = normal(3, 8).astype(numpy_type), normal(8, 4).astype(numpy_type)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    model = imported(proto, tmp_path)
    (got,) = Compiled([model]).run(0, {"x": x})
    assert got.dtype == numpy_type
    want = (x.astype(np.float32) @ w.astype(np.float32)).astype(numpy_type)
    np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=1e-2)
    assert model.weights["w.T"].dtype == "float32"


QUANTIZED = {
    "int8, a scale a channel": (np.int8, (4,), "axis = 1"),
    "uint8": (np.uint8, (), ""),
    "int8 in blocks": (np.int8, (2, 4), "axis = 0, block_size = 4"),
}


@pytest.mark.parametrize("case", QUANTIZED)
def test_a_dequantized_weight_is_a_lazy_float_weight(case: str, tmp_path: Path) -> None:
    dtype, scales, attributes = QUANTIZED[case]
    codes = RNG.integers(0, 100, (8, 4)).astype(dtype)
    scale = (RNG.random(scales) + 0.5).astype(np.float32)
    attributes = f"<{attributes}>" if attributes else ""
    text = f"""g (float[n, 8] x) => (float[n, 4] y) {{
        w = DequantizeLinear {attributes} (codes, scale, zero) y = MatMul(x, w) }}"""
    proto = graph(text, 21, codes=codes, scale=scale, zero=np.full(scales, 3, dtype))
    model = check(proto, tmp_path, {"x": normal(3, 8) / 100})
    (layer,) = model.layers.values()
    assert layer.reason == ""


def test_a_branch_known_at_import_is_taken(tmp_path: Path) -> None:
    text = """g (float[n, 4] x) => (float[n, 4] y) {
        d = Shape <start = 1, end = 2> (x) c = Equal(d, four)
        y = If (c) <then_branch = a () => (float[n, 4] p) { p = Neg(x) },
                    else_branch = b () => (float[n, 4] q) { q = Abs(x) }> }"""
    proto = graph(text, four=np.array([4]))
    check(proto, tmp_path, {"x": normal(2, 4)})


def test_a_branch_that_data_decides_is_refused(tmp_path: Path) -> None:
    text = """g (float[n, 4] x, bool c) => (float[n, 4] y) {
        y = If (c) <then_branch = a () => (float[n, 4] p) { p = Neg(x) },
                    else_branch = b () => (float[n, 4] q) { q = Abs(x) }> }"""
    with pytest.raises(
        ModelError, match=r"\(If, opset 20\): which branch it takes depends on data"
    ):
        imported(graph(text), tmp_path)


def test_model_local_functions_are_inlined(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "my" : 1]>
        g (float[n, 4] x) => (float[n, 4] y) { y = my.twice <factor = 3.0> (x) }
        <domain: "my", opset_import: ["" : 20]>
        twice <factor> (a) => (b) {
            k = Constant <value_float: float = @factor> () b = Mul(a, k) }"""
    x = normal(2, 4)
    model = imported(parser.parse_model(text), tmp_path)
    np.testing.assert_allclose(Compiled([model]).run(0, {"x": x})[0], 3 * x)


def test_an_input_with_an_initializer_is_a_constant(tmp_path: Path) -> None:
    text = "g (float[n, 8] x, float[8, 4] w) => (float[n, 4] y) { y = MatMul(x, w) }"
    model = check(graph(text, w=normal(8, 4)), tmp_path, {"x": normal(2, 8)})
    assert [port.name for port in model.inputs] == ["x"]


def test_nodes_without_use_are_left_out(tmp_path: Path) -> None:
    text = (
        "g (float[n, 8] x) => (float[n, 8] y) { y = Neg(x) z = MatMul(x, w) u = NoSuchOperator(z) }"
    )
    assert not imported(graph(text, w=normal(8, 4)), tmp_path).layers


def test_outputs_that_compute_nothing(tmp_path: Path) -> None:
    text = """g (float[n, 2] x) => (float[n, 2] y, float[2] c, int64[2] d) {
        y = Identity(x) c = Identity(k) d = Shape(x) }"""
    check(graph(text, k=normal(2)), tmp_path, {"x": normal(3, 2)})


def test_matmul_n_bits_is_a_float_weight(tmp_path: Path) -> None:
    codes = RNG.integers(0, 256, (4, 2, 16)).astype(np.uint8)  # N 4, K 64, blocks of 32
    scales = (RNG.random(8) + 0.5).astype(np.float32) / 8
    proto = parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
        g (float[n, 64] x) => (float[n, 4] y) {
            y = com.microsoft.MatMulNBits <K = 64, N = 4, bits = 4, block_size = 32> (x, q, s) }"""
    )
    proto.graph.initializer.extend(
        numpy_helper.from_array(a, n) for n, a in (("q", codes), ("s", scales))
    )
    model = check(proto, tmp_path, {"x": normal(3, 64) / 8})
    assert [layer.shape for layer in model.layers.values()] == [(4, 64)]
