import math
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.passes import RecognizeActivations
from tests.passes.build import Body, model_of, same_ir


def number(value: float) -> Any:
    return relax.const(np.float32(value))


def erf_part(b: Body, x: Any) -> Any:
    erf = b(relax.op.erf(b(relax.op.divide(x, number(math.sqrt(2))))))
    return b(relax.op.add(erf, number(1)))


def gelu_onnx(b: Body, x: Any) -> Any:
    return b(relax.op.multiply(b(relax.op.multiply(x, erf_part(b, x))), number(0.5)))


def gelu_torch(b: Body, x: Any) -> Any:
    return b(relax.op.multiply(b(relax.op.multiply(x, number(0.5))), erf_part(b, x)))


def silu(b: Body, x: Any) -> Any:
    return b(relax.op.multiply(b(relax.op.sigmoid(x)), x))


def hardswish_onnx(b: Body, x: Any) -> Any:
    clipped = b(relax.op.clip(b(relax.op.add(x, number(3))), 0, 6))
    return b(relax.op.divide(b(relax.op.multiply(x, clipped)), number(6)))


def hardswish_halves(b: Body, x: Any) -> Any:
    low = b(relax.op.maximum(b(relax.op.add(number(3), x)), number(0)))
    clipped = b(relax.op.minimum(low, number(6)))
    return b(relax.op.multiply(x, b(relax.op.divide(clipped, number(6)))))


@pytest.mark.parametrize(
    ("write", "activation"),
    [
        (gelu_onnx, relax.op.nn.gelu),
        (gelu_torch, relax.op.nn.gelu),
        (silu, relax.op.nn.silu),
        (hardswish_onnx, ops.hardswish),
        (hardswish_halves, ops.hardswish),
    ],
)
def test_a_spelled_out_activation_becomes_one_op(write: Any, activation: Any) -> None:
    before = model_of({"x": ["m", 64]}, write)
    expected = model_of({"x": ["m", 64]}, lambda b, x: b(activation(x)))
    same_ir(RecognizeActivations()(before).module, expected)


def gated(b: Body, x: Any) -> Any:
    return b(relax.op.multiply(b(relax.op.sigmoid(b(relax.op.negative(x)))), x))


def not_one_half(b: Body, x: Any) -> Any:
    return b(relax.op.multiply(b(relax.op.multiply(x, erf_part(b, x))), number(0.6)))


def another_clip(b: Body, x: Any) -> Any:
    clipped = b(relax.op.clip(b(relax.op.add(x, number(3))), 0, 5))
    return b(relax.op.divide(b(relax.op.multiply(x, clipped)), number(6)))


def half_a_clip(b: Body, x: Any) -> Any:
    clipped = b(relax.op.minimum(b(relax.op.add(x, number(3))), number(6)))
    return b(relax.op.divide(b(relax.op.multiply(x, clipped)), number(6)))


@pytest.mark.parametrize("write", [gated, not_one_half, another_clip, half_a_clip])
def test_left_alone(write: Any) -> None:
    before = model_of({"x": ["m", 64]}, write)
    same_ir(RecognizeActivations()(before).module, before)
