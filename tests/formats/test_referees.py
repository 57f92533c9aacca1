"""Where others agree with us, and each place where they do not, by name.

Referees: the casts of ml_dtypes, onnx's ReferenceEvaluator, gguf-py. A disagreement is pinned with
both results, so that an upgrade of a referee that changes sides is noticed.
"""

import gguf
import ml_dtypes
import numpy as np
import onnx
import pytest
from gguf.quants import dequantize, quantize
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lbcompiler.formats import FORMATS, BlockFormat, Quantized, decode_scales
from lbcompiler.formats.elements import E2M1, E2M3, E3M2, E4M3, E5M2, Element
from lbcompiler.formats.packing import pack_codes
from lbcompiler.formats.packing_gguf import pack_gguf
from lbcompiler.formats.scales import encode_e4m3

DTYPES = {
    E2M1: ml_dtypes.float4_e2m1fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E3M2: ml_dtypes.float6_e3m2fn,
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2: ml_dtypes.float8_e5m2,
}
ONNX_TYPES = {
    E2M1: (TensorProto.FLOAT4E2M1, 23),  # and the first opset that has it
    E2M3: (TensorProto.FLOAT6E2M3, 28),
    E3M2: (TensorProto.FLOAT6E3M2, 28),
    E4M3: (TensorProto.FLOAT8E4M3FN, 23),
    E5M2: (TensorProto.FLOAT8E5M2, 23),
}
E8M0 = TensorProto.FLOAT8E8M0
FLOAT = TensorProto.FLOAT
TIES = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)  # of E2M1
EVEN = np.array([0, 1, 1, 2, 2, 4, 4], np.float32)

every_float = pytest.mark.parametrize("element", DTYPES, ids=lambda e: e.name)


def ours(element: Element, x: np.ndarray) -> np.ndarray:
    return element.decode(element.encode(np.asarray(x, np.float32)))


def onnx_run(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    opset: int,
    constants: tuple[onnx.TensorProto, ...] = (),
) -> np.ndarray:
    """The value `y`, float32, of a checked graph in onnx's reference implementation."""
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in inputs.items()
    ]
    rank = max(x.ndim for x in inputs.values())
    y = helper.make_tensor_value_info("y", FLOAT, [f"d{i}" for i in range(rank)])
    graph = helper.make_graph(nodes, "referee", declared, [y], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model, full_check=True)
    result = ReferenceEvaluator(model).run(None, inputs)[0]
    return np.asarray(result)


def onnx_cast(x: np.ndarray, to: int, opset: int, **attributes: object) -> np.ndarray:
    nodes = [
        helper.make_node("Cast", ["x"], ["code"], to=to, **attributes),
        helper.make_node("Cast", ["code"], ["y"], to=FLOAT),
    ]
    return onnx_run(nodes, {"x": np.asarray(x, np.float32)}, opset)


@every_float
def test_ml_dtypes_and_onnx_round_all_finite_values_as_we_do(element: Element) -> None:
    random = np.random.default_rng(0)
    x = random.normal(0, element.max / 3, 20000).astype(np.float32)
    x = np.clip(np.concatenate([x, x * np.float32(element.smallest)]), -element.max, element.max)
    np.testing.assert_array_equal(ours(element, x), x.astype(DTYPES[element]).astype(np.float32))
    to, opset = ONNX_TYPES[element]
    np.testing.assert_array_equal(ours(element, x), onnx_cast(x, to, opset))


def test_e2m1_ties_ml_dtypes_and_onnx_to_even_as_we_do() -> None:
    for x, expected in ((TIES, EVEN), (-TIES, -EVEN)):
        np.testing.assert_array_equal(ours(E2M1, x), expected)
        np.testing.assert_array_equal(x.astype(DTYPES[E2M1]).astype(np.float32), expected)
        np.testing.assert_array_equal(onnx_cast(x, TensorProto.FLOAT4E2M1, 23), expected)


def test_e2m1_ties_microxcaling_nearest_goes_away_from_zero() -> None:
    """Its `round="nearest"` is sign(x) * floor(|x| / step + 1/2) * step; `even` is what we do."""
    step = np.array([0.5, 0.5, 0.5, 0.5, 1, 1, 2], np.float32)
    away = np.floor(TIES / step + np.float32(0.5)) * step
    np.testing.assert_array_equal(away, [0.5, 1, 1.5, 2, 3, 4, 6])
    np.testing.assert_array_equal(ours(E2M1, TIES), EVEN)
    assert (away != EVEN).sum() == 4


def test_e2m1_ties_gguf_goes_to_the_lower_code() -> None:
    block = np.zeros((1, 32), np.float32)
    block[0, :7], block[0, 7] = TIES, 6  # the 6 fixes the scale at 1
    mxfp4 = gguf.GGMLQuantizationType.MXFP4
    theirs = dequantize(quantize(block, mxfp4), mxfp4)[0, :7]
    np.testing.assert_array_equal(theirs, [0, 0.5, 1, 1.5, 2, 3, 4])
    fmt = FORMATS["mxfp4"]
    np.testing.assert_array_equal(fmt.dequantize(fmt.quantize(block, "floor"))[0, :7], EVEN)


@pytest.mark.parametrize("element", [E2M1, E2M3, E3M2], ids=lambda e: e.name)
def test_small_floats_of_inf_saturate_everywhere_and_of_nan_are_minus_zero_elsewhere(
    element: Element,
) -> None:
    """We write +0 for a NaN; in a block it never comes to that, for the scale is NaN."""
    x = np.array([np.inf, -np.inf, np.nan], np.float32)
    theirs = [x.astype(DTYPES[element]).astype(np.float32), onnx_cast(x, *ONNX_TYPES[element])]
    for cast in theirs:
        np.testing.assert_array_equal(cast, [element.max, -element.max, 0])
        assert np.signbit(cast[2])
    np.testing.assert_array_equal(ours(element, x), [element.max, -element.max, 0])
    assert not np.signbit(ours(element, x)[2])


def test_e2m1_of_small_negatives_is_minus_zero_but_zero_in_gguf() -> None:
    x = np.array([-0.1, -0.0], np.float32)
    casts = [ours(E2M1, x), x.astype(DTYPES[E2M1]), onnx_cast(x, TensorProto.FLOAT4E2M1, 23)]
    for cast in casts:
        assert np.signbit(cast.astype(np.float32)).all()
    block = np.zeros((1, 32), np.float32)
    block[0, :3] = -0.1, -0.0, 6
    mxfp4 = gguf.GGMLQuantizationType.MXFP4
    assert (quantize(block, mxfp4)[0, 1:3] & 0xF == 0).all()
    assert FORMATS["mxfp4"].quantize(block).codes[0, :2].tolist() == [8, 8]


def test_e4m3_overflow_is_nan_in_ml_dtypes_and_saturates_in_onnx_and_here() -> None:
    x = np.array([448, 464, 465, 1000, np.inf, -1000], np.float32)
    nan = np.nan
    theirs = x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(theirs, [448, 448, nan, nan, nan, nan])
    saturated = [448, 448, 448, 448, 448, -448]
    np.testing.assert_array_equal(ours(E4M3, x), saturated)
    to = TensorProto.FLOAT8E4M3FN
    np.testing.assert_array_equal(onnx_cast(x, to, 23, saturate=1), saturated)
    np.testing.assert_array_equal(onnx_cast(x, to, 23, saturate=0), [448, 448, nan, nan, nan, nan])


def test_e5m2_overflow_is_inf_in_ml_dtypes_and_saturates_in_onnx_and_here() -> None:
    x = np.array([57344, 61440, 1e6, -np.inf], np.float32)
    theirs = x.astype(ml_dtypes.float8_e5m2).astype(np.float32)
    np.testing.assert_array_equal(theirs, [57344, np.inf, np.inf, -np.inf])
    saturated = [57344, 57344, 57344, -57344]
    np.testing.assert_array_equal(ours(E5M2, x), saturated)
    np.testing.assert_array_equal(onnx_cast(x, TensorProto.FLOAT8E5M2, 23), saturated)


def rceil(maximum: float) -> float:
    """The scale that MXFP4's rceil gives a block whose maximum is 6 times this."""
    block = np.full((1, 32), 6 * maximum, np.float32)
    return float(decode_scales(FORMATS["mxfp4"].quantize(block).scales, "e8m0")[0, 0])


def test_onnx_reads_every_e8m0_byte_as_we_do() -> None:
    scales = np.arange(256, dtype=np.uint8)
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=FLOAT)]
    values = onnx_run(nodes, {"x": scales.view(ml_dtypes.float8_e8m0fnu)}, 24)
    np.testing.assert_array_equal(values, decode_scales(scales, "e8m0"))


def test_e8m0_of_three_and_one_and_a_half() -> None:
    """To nearest a tie goes up (ml_dtypes, onnx); floor and ceil are rules of ours, not casts."""
    x = np.array([3.0, 1.5, 2.9], np.float32)
    nearest = x.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(nearest, [4, 2, 2])
    np.testing.assert_array_equal(onnx_cast(x, E8M0, 24, round_mode="nearest"), nearest)
    np.testing.assert_array_equal(onnx_cast(x, E8M0, 24, round_mode="up"), [4, 2, 4])
    np.testing.assert_array_equal(onnx_cast(x, E8M0, 24, round_mode="down"), [2, 1, 2])
    assert [rceil(value) for value in x] == [4, 2, 4]


def test_e8m0_of_zero_and_inf() -> None:
    x = np.array([0, np.inf, np.nan], np.float32)
    theirs = x.astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(theirs, [np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(onnx_cast(x, E8M0, 24), [2.0**-127, np.nan, np.nan])
    assert [rceil(0), rceil(1e30) < np.inf] == [2.0**-127, True]
    assert np.isnan([rceil(np.inf), rceil(np.nan)]).all()


@pytest.mark.parametrize("name", ["mxint8", "mxint6", "mxint4", "mxfp8", "mxfp6", "mxfp4"])
def test_onnx_rounding_the_quotient_up_is_rceil(name: str) -> None:
    """Also next to max * 2^k: a mantissa of max below 2 keeps the float32 quotient above 2^k."""
    fmt = FORMATS[name]
    edges = np.ldexp(np.float32(fmt.element.max), np.arange(-60, 60)).astype(np.float32)
    random = np.exp2(np.random.default_rng(2).uniform(-60, 60, 1000)).astype(np.float32)
    around = [np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(np.inf))]
    maxima = np.concatenate([*around, random])
    scales = fmt.quantize(np.repeat(maxima[:, None], 32, axis=1)).scales[:, 0]
    theirs = onnx_cast(maxima / np.float32(fmt.element.max), E8M0, 24, round_mode="up")
    np.testing.assert_array_equal(decode_scales(scales, "e8m0"), theirs)


def test_a_zero_block_of_gguf_has_byte_zero_as_ours() -> None:
    packed = quantize(np.zeros((1, 32), np.float32), gguf.GGMLQuantizationType.MXFP4)
    assert not packed.any()
    fmt = FORMATS["mxfp4"]
    np.testing.assert_array_equal(packed, pack_gguf(fmt.quantize(np.zeros((1, 32))), fmt))


def test_gguf_has_the_floor_rule() -> None:
    x = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    theirs = quantize(x, gguf.GGMLQuantizationType.MXFP4)[:, :1]
    np.testing.assert_array_equal(theirs, FORMATS["mxfp4"].quantize(x, "floor").scales)


def test_gguf_reads_nan_scales_as_finite() -> None:
    """0xFF is 2^128 / 2 there, 0x7F is zero; `pack_gguf` refuses both."""
    mxfp4 = np.full((1, 17), 0x11, np.uint8)
    mxfp4[0, 0] = 0xFF
    assert dequantize(mxfp4, gguf.GGMLQuantizationType.MXFP4)[0, 0] == 2.0**127
    nvfp4 = np.full((1, 36), 0x11, np.uint8)
    nvfp4[0, :4] = 0x7F
    assert not dequantize(nvfp4, gguf.GGMLQuantizationType.NVFP4).any()
    assert np.isnan(decode_scales(np.array([0xFF], np.uint8), "e8m0"))
    assert np.isnan(decode_scales(np.array([0x7F], np.uint8), "e4m3"))


def test_gguf_writes_e4m3_scales_from_256_up_as_448() -> None:
    """Its encoder takes the exponent field 15 for overflow, though only 0x7F is no number."""
    encode = gguf.quants.NVFP4.fp32_to_ue4m3
    x = np.array([240, 256, 320, 448, 1000], np.float32)
    assert encode(x).tolist() == [0x77, 0x7E, 0x7E, 0x7E, 0x7E]
    assert encode_e4m3(x).tolist() == [0x77, 0x78, 0x7A, 0x7E, 0x7E]
    below = np.geomspace(2.0**-6, 239, 1000).astype(np.float32)
    ties = (below.view(np.uint32) & 0xFFFFF) == 0x80000
    np.testing.assert_array_equal(encode(below[~ties]), encode_e4m3(below[~ties]))


def test_gguf_rounds_e4m3_ties_up_and_small_scales_to_zero() -> None:
    encode = gguf.quants.NVFP4.fp32_to_ue4m3
    x = np.array([1.0625, 2.0**-11], np.float32)  # a tie of 1 and 1.125; a fourth of the smallest
    assert encode(x).tolist() == [0x39, 0x00]
    assert encode_e4m3(x).tolist() == [0x38, 0x01]


BLOCKED = [  # format, element type, opsets in which the reference must agree
    ("mxfp4", TensorProto.FLOAT4E2M1, (24, 28)),
    ("mxfp8", TensorProto.FLOAT8E4M3FN, (24, 28)),
    ("mxfp8_e5m2", TensorProto.FLOAT8E5M2, (24, 28)),
    ("mxint8", TensorProto.INT8, (24, 28)),
    ("mxint4", TensorProto.INT4, (24, 28)),
    ("mxfp6", TensorProto.FLOAT6E2M3, (28,)),
    ("mxfp6_e3m2", TensorProto.FLOAT6E3M2, (28,)),
    ("nvfp4", TensorProto.FLOAT4E2M1, (23, 24, 28)),
    ("nvint4", TensorProto.INT4, (23, 24, 28)),
]
blocked = pytest.mark.parametrize(
    ("fmt", "element_type", "opset"),
    [(FORMATS[name], kind, opset) for name, kind, opsets in BLOCKED for opset in opsets],
    ids=[f"{name}-{opset}" for name, _, opsets in BLOCKED for opset in opsets],
)


def data(fmt: BlockFormat) -> np.ndarray:
    """Rows of different sizes with a short last block and a block of zeros."""
    x = np.random.default_rng(5).standard_normal((6, 3 * fmt.block + 7)).astype(np.float32)
    x *= np.exp2(np.arange(-3, 3, dtype=np.float32))[:, None]
    x[2, : fmt.block] = 0
    return x


def scale_input(fmt: BlockFormat, q: Quantized) -> np.ndarray:
    scale = ml_dtypes.float8_e8m0fnu if fmt.scale == "e8m0" else ml_dtypes.float8_e4m3fn
    return q.scales.view(scale)


def code_tensor(fmt: BlockFormat, q: Quantized, element_type: int) -> onnx.TensorProto:
    raw = pack_codes(q.codes.reshape(-1), fmt.element.bits).tobytes()
    return helper.make_tensor("w", element_type, q.codes.shape, raw, raw=True)


@blocked
def test_onnx_dequantizes_our_codes_and_scales(
    fmt: BlockFormat, element_type: int, opset: int
) -> None:
    """MX to the last bit. NV takes two nodes: code * (scale * g); ours is (code * scale) * g."""
    q = fmt.quantize(data(fmt))
    inputs, nodes, scale = {"s": scale_input(fmt, q)}, [], "s"
    if q.tensor_scale is not None:
        inputs["g"] = q.tensor_scale.reshape(())
        nodes = [helper.make_node("DequantizeLinear", ["s", "g"], ["d"])]
        scale = "d"
    attributes = {"axis": -1, "block_size": fmt.block}
    if q.tensor_scale is None:
        attributes["output_dtype"] = FLOAT
    nodes.append(helper.make_node("DequantizeLinear", ["w", scale], ["y"], **attributes))
    y = onnx_run(nodes, inputs, opset, (code_tensor(fmt, q, element_type),))
    if q.tensor_scale is None:
        np.testing.assert_array_equal(y, fmt.dequantize(q))
    else:  # each has two or three roundings of half a unit
        np.testing.assert_allclose(y, fmt.dequantize(q), rtol=3 * 2**-24)


@blocked
def test_onnx_quantizes_to_our_codes_under_our_scales(
    fmt: BlockFormat, element_type: int, opset: int
) -> None:
    x = data(fmt)
    q = fmt.quantize(x)
    scale = decode_scales(q.scales, fmt.scale)
    if q.tensor_scale is not None:
        scale = scale * q.tensor_scale
    nodes = [
        helper.make_node(
            "QuantizeLinear", ["x", "s"], ["code"],
            axis=-1, block_size=fmt.block, output_dtype=element_type,
        ),
        helper.make_node("Cast", ["code"], ["y"], to=FLOAT),
    ]  # fmt: skip
    y = onnx_run(nodes, {"x": x, "s": scale}, opset)
    np.testing.assert_array_equal(y, fmt.element.decode(q.codes))


def test_onnx_integers_have_the_most_negative_code_which_we_never_write() -> None:
    x = np.full((1, 32), -130, np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["c"], output_dtype=TensorProto.INT8),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    assert (onnx_run(nodes, {"x": x, "s": np.float32(1).reshape(())}, 23) == -128).all()
    fmt = FORMATS["mxint8"]
    assert (ours(fmt.element, x) == -127).all()


def test_a_reciprocal_is_not_a_division_on_ties() -> None:
    """torchao's kernels multiply by 1 / scale; ONNX and we divide."""
    scales = np.arange(1, 400, dtype=np.float32)[:, None] / np.float32(7)
    x = TIES * scales
    exact = x.astype(np.float64) == TIES * scales.astype(np.float64)
    by_reciprocal = ours(E2M1, x * (np.float32(1) / scales))
    by_division = ours(E2M1, x / scales)
    np.testing.assert_array_equal(by_division[exact], np.broadcast_to(EVEN, x.shape)[exact])
    assert (by_reciprocal != by_division)[exact].any()
