"""Type inference of our ops, with symbolic dimensions, and their argument packing."""

from typing import Any

import pytest
import tvm
from tvm import relax

from lbcompiler.formats import FORMATS, BlockFormat
from lbcompiler.ir import ops

M, H = tvm.tirx.Var("m", "int64"), tvm.tirx.Var("h", "int64")


def variable(*shape: Any, dtype: str = "float32") -> Any:
    return relax.Var("x", relax.TensorType(list(shape), dtype))


def inferred(call: Any) -> Any:
    builder = relax.BlockBuilder()
    free = [a for a in call.args if isinstance(a, relax.Var)]
    with builder.function("f", free):
        out = builder.emit(call)
        builder.emit_func_output(out)
    return out.ty


def shape_of(ty: Any) -> list[str]:
    return [str(getattr(d, "value", d)) for d in ty.shape.values]


def test_dense_takes_leading_dimensions_along() -> None:
    call = ops.dense(variable(2, M, 64), variable(8, 64), layer="l")
    assert shape_of(inferred(call)) == ["2", "m", "8"]


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_quantize_gives_codes_scales_and_a_tensor_scale_a_row(fmt: BlockFormat) -> None:
    parts = inferred(ops.quantize(variable(M, 72), fmt=fmt, scale_rule=fmt.default_rule)).fields
    assert shape_of(parts[0]) == ["m", "72"]
    assert shape_of(parts[1]) == ["m", str(fmt.blocks(72))]
    assert [shape_of(p) for p in parts[2:]] == [["m", "1"]] * fmt.has_tensor_scale


@pytest.mark.parametrize(
    ("pads", "dilation", "extent"), [(2, 1, H), (0, 1, H - 2), (0, 2, H - 4), (4, 2, H)]
)
def test_windows_of_a_symbolic_image(pads: int, dilation: int, extent: Any) -> None:
    half = pads // 2
    call = ops.im2col(
        variable(1, H, 9, 4),
        kernel=[3, 3],
        strides=[1, 1],
        padding=[half, 1, pads - half, 1],
        dilation=[dilation, 1],
    )
    shape = inferred(call).shape.values
    assert tvm.sym.Analyzer().can_prove_equal(shape[1], extent)
    assert [int(d) for d in (shape[0], *shape[2:])] == [1, 9, 36]


def test_a_convolution_has_the_extent_of_its_windows() -> None:
    settings = {"strides": [2, 2], "padding": [1, 1, 1, 1], "dilation": [1, 1]}
    conv = inferred(ops.conv(variable(1, 4, 11, 8), variable(16, 4, 3, 3), layer="l", **settings))
    rows = inferred(ops.im2col(variable(1, 11, 8, 4), kernel=[3, 3], **settings))
    each = ops.depthwise(variable(1, 11, 8, 4), variable(3, 3, 4), layer="l", **settings)
    assert shape_of(conv) == ["1", "16", "6", "4"]
    assert shape_of(rows) == ["1", "6", "4", "36"]
    assert shape_of(inferred(each)) == ["1", "6", "4", "4"]


def test_an_attention_has_its_positions_before_its_heads() -> None:
    q, k, v = variable(2, 6, M, 16), variable(2, H, 9, 16), variable(2, H, 9, 24)
    layouts = ["BHSD", "BSHD", "BSHD"]
    call = ops.attention(q, k, v, heads=6, key_heads=3, scale=0.25, layouts=layouts)
    assert shape_of(inferred(call)) == ["2", "m", "6", "24"]


@pytest.mark.parametrize("bias", [None, variable(8)])
@pytest.mark.parametrize(("weight", "act"), [("nvfp4", "mxint8"), ("mxfp4", None), (None, None)])
def test_linear_unpacks_what_it_packs(weight: str | None, act: str | None, bias: Any) -> None:
    formats = (FORMATS[weight] if weight else None, FORMATS[act] if act else None)
    parts = [[variable(4, 64) for _ in range(f.parts if f else 1)] for f in formats]
    call = ops.linear(
        parts[1], parts[0], bias, layer="l", n=8, weight_format=formats[0], act_format=formats[1]
    )
    found = ops.linear_operands(call)
    for got, packed in zip(found[:2], parts[::-1], strict=True):
        assert all(a.same_as(b) for a, b in zip(got, packed, strict=True))
    assert found[2] is None if bias is None else found[2].same_as(bias)
    assert ops.linear_formats(call) == formats
