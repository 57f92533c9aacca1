from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir.rewrite import calls
from lbcompiler.passes import RecognizeNorms
from tests.passes.build import Body, model_of, same_ir

op = relax.op
EPSILON = float(np.float32(1e-5))


def number(value: float) -> Any:
    return relax.const(np.float32(value))


def mean_square(b: Body, x: Any, axis: int = -1, keepdims: bool = True) -> Any:
    mean = b(op.mean(b(op.multiply(x, x)), axis=[axis], keepdims=keepdims))
    return b(op.add(mean, number(EPSILON)))


def onnx_rms(b: Body, x: Any) -> Any:
    return b(op.multiply(x, b(op.divide(number(1), b(op.sqrt(mean_square(b, x)))))))


def torch_rms(b: Body, x: Any) -> Any:
    return b(op.multiply(b(op.rsqrt(mean_square(b, x))), x))


def quotient_rms(b: Body, x: Any) -> Any:
    square = b(op.power(x, number(2)))
    add = b(op.add(number(EPSILON), b(op.mean(square, axis=[-1], keepdims=True))))
    return b(op.divide(x, b(op.sqrt(add))))


def rms_norm(b: Body, x: Any, *, norm: Any = onnx_rms, first: bool = True) -> Any:
    gamma, scaled = b.weight("gamma", 64), norm(b, x)
    return b(op.multiply(gamma, scaled) if first else op.multiply(scaled, gamma))


@pytest.mark.parametrize("norm", [onnx_rms, torch_rms, quotient_rms])
@pytest.mark.parametrize("first", [True, False])
def test_a_spelled_out_rms_norm_becomes_one_op(norm: Any, first: bool) -> None:
    before = model_of({"x": ["m", 64]}, lambda b, x: rms_norm(b, x, norm=norm, first=first))
    expected = model_of(
        {"x": ["m", 64]},
        lambda b, x: b(op.nn.rms_norm(x, b.weight("gamma", 64), [-1], EPSILON)),
    )
    same_ir(RecognizeNorms()(before).module, expected)


def layer_norm(b: Body, x: Any, norm: Any = quotient_rms) -> Any:
    centered = b(op.subtract(x, b(op.mean(x, axis=[2], keepdims=True))))
    scaled = b(op.multiply(norm(b, centered), b.weight("gamma", 64)))
    return b(op.add(scaled, b.weight("beta", 64)))


@pytest.mark.parametrize("norm", [onnx_rms, torch_rms, quotient_rms])
def test_a_spelled_out_layer_norm_becomes_one_op(norm: Any) -> None:
    before = model_of({"x": ["n", "m", 64]}, lambda b, x: layer_norm(b, x, norm))
    expected = model_of(
        {"x": ["n", "m", 64]},
        lambda b, x: b(
            op.nn.layer_norm(x, b.weight("gamma", 64), b.weight("beta", 64), [-1], EPSILON)
        ),
    )
    same_ir(RecognizeNorms()(before).module, expected)


def over_another_axis(b: Body, x: Any) -> Any:
    root = b(op.rsqrt(mean_square(b, x, axis=0)))
    return b(op.multiply(b(op.multiply(x, root)), b.weight("gamma", 64)))


def of_another_value(b: Body, x: Any) -> Any:
    root = b(op.rsqrt(mean_square(b, b(op.nn.relu(x)))))
    return b(op.multiply(b(op.multiply(x, root)), b.weight("gamma", 64)))


def with_a_computed_gain(b: Body, x: Any) -> Any:
    gain = b(op.sum(x, axis=[0]))
    return b(op.multiply(onnx_rms(b, x), gain))


def without_a_gain(b: Body, x: Any) -> Any:
    return onnx_rms(b, x)


def of_a_cube(b: Body, x: Any) -> Any:
    mean = b(op.mean(b(op.power(x, number(3))), axis=[-1], keepdims=True))
    root = b(op.rsqrt(b(op.add(mean, number(EPSILON)))))
    return b(op.multiply(b(op.multiply(x, root)), b.weight("gamma", 64)))


def two_over_the_root(b: Body, x: Any) -> Any:
    root = b(op.divide(number(2), b(op.sqrt(mean_square(b, x)))))
    return b(op.multiply(b(op.multiply(x, root)), b.weight("gamma", 64)))


@pytest.mark.parametrize(
    "write",
    [
        over_another_axis,
        of_another_value,
        with_a_computed_gain,
        without_a_gain,
        of_a_cube,
        two_over_the_root,
    ],
)
def test_left_alone(write: Any) -> None:
    before = model_of({"x": [64, 64]}, write)
    same_ir(RecognizeNorms()(before).module, before)


def test_a_norm_of_what_is_not_centered_is_no_layer_norm() -> None:
    def write(b: Body, x: Any) -> Any:
        centered = b(op.subtract(x, b(op.mean(b(op.nn.relu(x)), axis=[-1], keepdims=True))))
        return b(op.add(rms_norm(b, centered), b.weight("beta", 64)))

    after = RecognizeNorms()(model_of({"x": ["m", 64]}, write))
    names = [call.op.name for call in calls(after.module)]
    assert "relax.nn.rms_norm" in names
    assert "relax.nn.layer_norm" not in names
