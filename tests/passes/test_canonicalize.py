from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.passes import Canonicalize
from tests.passes.build import Body, model_of, same_ir

BIAS = relax.const(np.arange(8, dtype=np.float32))


def dense(body: Body, x: Any, bias: Any = None) -> Any:
    return body(ops.dense(x, body.weight("w", 8, 64), bias, layer=body.layer("l")))


@pytest.mark.parametrize("order", [1, -1])
def test_a_constant_added_to_a_dense_becomes_its_bias(order: int) -> None:
    before = model_of({"x": ["m", 64]}, lambda b, x: b(relax.op.add(*[dense(b, x), BIAS][::order])))
    same_ir(
        Canonicalize()(before).module, model_of({"x": ["m", 64]}, lambda b, x: dense(b, x, BIAS))
    )


def test_a_bias_with_leading_ones_becomes_a_vector() -> None:
    wide = relax.const(np.arange(8, dtype=np.float32).reshape(1, 1, 8))
    before = model_of({"x": [1, "m", 64]}, lambda b, x: b(relax.op.add(dense(b, x), wide)))
    same_ir(
        Canonicalize()(before).module, model_of({"x": [1, "m", 64]}, lambda b, x: dense(b, x, BIAS))
    )


def test_a_convolution_becomes_a_dense_of_its_windows() -> None:
    attrs = {"strides": [2, 1], "padding": [1, 0, 1, 2], "dilation": [1, 2]}

    def conv(b: Body, x: Any) -> Any:
        w = b.weight("w", 8, 4, 3, 2)
        return b(ops.conv(x, w, BIAS, layer=b.layer("l", "Conv"), **attrs))

    def windows(b: Body, x: Any) -> Any:
        b.layer("l", "Conv")
        pixels = b(relax.op.permute_dims(x, [0, 2, 3, 1]))
        rows = b(ops.im2col(pixels, kernel=[3, 2], **attrs))
        return b(relax.op.permute_dims(dense_rows(b, rows), [0, 3, 1, 2]))

    def dense_rows(b: Body, rows: Any) -> Any:
        return b(ops.dense(rows, b.weight("w.rows", 8, 24), BIAS, layer="l"))

    before = model_of({"x": ["n", 4, "h", 9]}, conv)
    after = Canonicalize()(before)
    same_ir(after.module, model_of({"x": ["n", 4, "h", 9]}, windows))
    rows = after.weights["w.rows"].load().reshape(8, 3, 2, 4)
    np.testing.assert_array_equal(rows, before.weights["w"].load().transpose(0, 2, 3, 1))


def test_a_convolution_of_each_channel_becomes_depthwise() -> None:
    attrs = {"strides": [2, 1], "padding": [1, 0, 1, 2], "dilation": [1, 2]}

    def conv(b: Body, x: Any) -> Any:
        w = b.weight("w", 8, 1, 3, 2)
        return b(ops.conv(x, w, BIAS, layer=b.layer("l", "Conv"), groups=8, **attrs))

    def depthwise(b: Body, x: Any) -> Any:
        b.layer("l", "Conv")
        pixels = b(relax.op.permute_dims(x, [0, 2, 3, 1]))
        w = b.weight("w.channels_last", 3, 2, 8)
        y = b(ops.depthwise(pixels, w, BIAS, layer="l", **attrs))
        return b(relax.op.permute_dims(y, [0, 3, 1, 2]))

    before = model_of({"x": ["n", 8, "h", 9]}, conv)
    after = Canonicalize()(before)
    same_ir(after.module, model_of({"x": ["n", 8, "h", 9]}, depthwise))
    held = after.weights["w.channels_last"].load()
    np.testing.assert_array_equal(held, before.weights["w"].load()[:, 0].transpose(1, 2, 0))


def test_left_alone_a_grouped_convolution() -> None:
    def conv(b: Body, x: Any) -> Any:
        return b(ops.conv(x, b.weight("w", 8, 1, 3, 3), layer=b.layer("l", "Conv"), groups=4))

    before = model_of({"x": [1, 4, 9, 9]}, conv)
    same_ir(Canonicalize()(before).module, before)


def scalar(b: Body, x: Any) -> Any:
    return b(relax.op.add(dense(b, x), relax.const(np.float32(1))))


def not_constant(b: Body, x: Any) -> Any:
    return b(relax.op.add(dense(b, x), b(relax.op.mean(x, axis=1, keepdims=True))))


def used_twice(b: Body, x: Any) -> Any:
    y = dense(b, x)
    return b(relax.op.multiply(b(relax.op.add(y, BIAS)), y))


@pytest.mark.parametrize("write", [scalar, not_constant, used_twice])
def test_left_alone(write: Any) -> None:
    before = model_of({"x": [4, 64]}, write)
    same_ir(replace(Canonicalize()(before)).module, before)
