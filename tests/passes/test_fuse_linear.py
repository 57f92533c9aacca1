from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.formats import FORMATS, BlockFormat
from lbcompiler.ir import ops
from lbcompiler.ir.model import Weight
from lbcompiler.ir.rewrite import calls
from lbcompiler.passes import FuseLinear
from tests.passes.build import Body, model_of, same_ir
from tests.passes.test_insert_qdq import round_trip

MXFP4, NVFP4 = FORMATS["mxfp4"], FORMATS["nvfp4"]
BIAS = relax.const(np.arange(8, dtype=np.float32))


def parts(b: Body, fmt: BlockFormat) -> list[Any]:
    names = ("codes", "scales", "tensor_scale")[: fmt.parts]
    quantized = fmt.quantize(np.ones((8, 64), np.float32))
    arrays = (quantized.codes, quantized.scales, quantized.tensor_scale)
    b.weights.update({n: Weight.of(np.asarray(a)) for n, a in zip(names, arrays, strict=False)})
    return [b(ops.weight(n, b.weights[n].shape, b.weights[n].dtype)) for n in names]


def quantized_dense(b: Body, x: Any, w: BlockFormat | None, a: BlockFormat | None) -> Any:
    weight = b.weight("w", 8, 64) if w is None else b(ops.dequantize(parts(b, w), fmt=w))
    source = x if a is None else round_trip(b, x, a, a.default_rule)
    return b(ops.dense(source, weight, BIAS, layer=b.layer("l")))


def linear(b: Body, x: Any, w: BlockFormat | None, a: BlockFormat | None, epilogue: str) -> Any:
    weight = [b.weight("w", 8, 64)] if w is None else parts(b, w)
    operands = [x]
    if a is not None:
        quantized = b(ops.quantize(x, fmt=a, scale_rule=a.default_rule))
        operands = [b(relax.TupleGetItem(quantized, i)) for i in range(a.parts)]
    formats = {"weight_format": w, "act_format": a, "epilogue": epilogue}
    return b(ops.linear(operands, weight, BIAS, layer=b.layer("l"), n=8, **formats))


@pytest.mark.parametrize(
    ("weight", "act"), [(NVFP4, NVFP4), (MXFP4, NVFP4), (NVFP4, None), (None, None)]
)
@pytest.mark.parametrize("epilogue", ["none", "gelu"])
def test_a_dense_and_what_surrounds_it_become_one_linear(
    weight: Any, act: Any, epilogue: str
) -> None:
    def before(b: Body, x: Any) -> Any:
        y = quantized_dense(b, x, weight, act)
        return y if epilogue == "none" else b(relax.op.nn.gelu(y))

    after = FuseLinear()(model_of({"x": ["m", 64]}, before))
    expected = model_of({"x": ["m", 64]}, lambda b, x: linear(b, x, weight, act, epilogue))
    same_ir(after.module, expected)
    assert after.layers["l"].epilogue == epilogue


def test_an_activation_moves_before_a_permutation() -> None:
    def before(b: Body, x: Any) -> Any:
        y = b(relax.op.permute_dims(quantized_dense(b, x, NVFP4, NVFP4), [0, 3, 1, 2]))
        return b(relax.op.nn.relu(y))

    def expected(b: Body, x: Any) -> Any:
        return b(relax.op.permute_dims(linear(b, x, NVFP4, NVFP4, "relu"), [0, 3, 1, 2]))

    after = FuseLinear()(model_of({"x": [1, "h", "w", 64]}, before))
    same_ir(after.module, model_of({"x": [1, "h", "w", 64]}, expected))


def read_twice(b: Body, x: Any) -> Any:
    y = quantized_dense(b, x, NVFP4, NVFP4)
    return b(relax.op.add(b(relax.op.nn.relu(y)), y))


def two_activations(b: Body, x: Any) -> Any:
    return b(relax.op.nn.relu(b(relax.op.tanh(quantized_dense(b, x, NVFP4, NVFP4)))))


@pytest.mark.parametrize(("write", "epilogue"), [(read_twice, "none"), (two_activations, "tanh")])
def test_an_epilogue_is_left_alone(write: Any, epilogue: str) -> None:
    after = FuseLinear()(model_of({"x": ["m", 64]}, write))
    assert after.layers["l"].epilogue == epilogue
    assert "relax.nn.relu" in {c.op.name for c in calls(after.module)}
