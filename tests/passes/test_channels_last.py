"""Permutations sink below what walks over pixels, and cancel where a convolution wants them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.rewrite import bindings
from lbcompiler.passes import ChannelsLast
from tests.passes.build import Body, model_of, same_ir

op = relax.op
Y = {"y": ["n", "h", 9, 6]}
CHANNELS = np.arange(6, dtype=np.float32)
WINDOWS = {"strides": [2, 1], "padding": [1, 1, 0, 0], "dilation": [1, 1]}


def nchw(b: Body, y: Any) -> Any:
    return b(op.permute_dims(y, [0, 3, 1, 2]))


def nhwc(b: Body, x: Any) -> Any:
    return b(op.permute_dims(x, [0, 2, 3, 1]))


def constant(values: np.ndarray, *shape: int) -> Any:
    return relax.const(values.reshape(shape))


Write = Callable[[Body, Any], Any]
ELEMENTWISE: dict[str, tuple[Write, Write]] = {
    "one operand": (lambda b, x: b(op.nn.relu(x)), lambda b, y: b(op.nn.relu(y))),
    "a constant a channel": (
        lambda b, x: b(op.add(constant(CHANNELS, 1, 6, 1, 1), x)),
        lambda b, y: b(op.add(constant(CHANNELS, 1, 1, 1, 6), y)),
    ),
    "a number": (
        lambda b, x: b(op.multiply(x, relax.const(np.float32(2)))),
        lambda b, y: b(op.multiply(y, relax.const(np.float32(2)))),
    ),
    "the mean of each channel": (
        lambda b, x: b(op.multiply(x, b(op.mean(x, [2, 3], keepdims=True)))),
        lambda b, y: b(op.multiply(y, b(op.mean(y, [1, 2], keepdims=True)))),
    ),
    "pooling": (
        lambda b, x: b(op.nn.max_pool2d(x, [3, 2], [2, 1], [1, 0, 1, 0])),
        lambda b, y: b(op.nn.max_pool2d(y, [3, 2], [2, 1], [1, 0, 1, 0], layout="NHWC")),
    ),
    "concatenation of channels": (
        lambda b, x: b(op.concat([x, x], 1)),
        lambda b, y: b(op.concat([y, y], 3)),
    ),
    "a transposed convolution without overlap": (
        lambda b, x: b(op.nn.conv2d_transpose(x, kernel(b), strides=(3, 2))),
        lambda b, y: placed(b, y),
    ),
    "each column twice": (
        lambda b, x: repeated(b, x, 3),
        lambda b, y: repeated(b, y, 2),
    ),
}


def kernel(b: Body) -> Any:
    return b.weight("w", 6, 5, 3, 2)


def placed(b: Body, y: Any) -> Any:
    n, h, w, _ = y.ty.shape.values
    turned = b(op.permute_dims(kernel(b), [0, 2, 3, 1]))
    z = b(op.matmul(y, b(op.reshape(turned, [6, 30]))))
    z = b(op.permute_dims(b(op.reshape(z, [n, h, w, 3, 2, 5])), [0, 1, 3, 2, 4, 5]))
    return b(op.reshape(z, [n, h * 3, w * 2, 5]))


def repeated(b: Body, x: Any, axis: int) -> Any:
    shape = list(x.ty.shape.values)
    thin = b(op.reshape(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]]))
    wide = b(op.broadcast_to(thin, [*shape[: axis + 1], 2, *shape[axis + 1 :]]))
    return b(op.reshape(wide, [*shape[:axis], shape[axis] * 2, *shape[axis + 1 :]]))


@pytest.mark.parametrize("case", ELEMENTWISE)
def test_a_permutation_sinks_below(case: str) -> None:
    before, after = ELEMENTWISE[case]
    model = model_of(Y, lambda b, y: before(b, nchw(b, y)))
    expected = model_of(Y, lambda b, y: nchw(b, after(b, y)))
    same_ir(ChannelsLast()(model).module, expected)


def test_between_two_convolutions_nothing_is_permuted() -> None:
    def depthwise(b: Body, y: Any) -> Any:
        return b(ops.depthwise(y, b.weight("w", 3, 3, 6), layer=b.layer("d", "Conv"), **WINDOWS))

    def before(b: Body, y: Any) -> Any:
        x = nchw(b, depthwise(b, y))
        return b(ops.im2col(nhwc(b, b(ops.hardswish(x))), kernel=[3, 1], **WINDOWS))

    def after(b: Body, y: Any) -> Any:
        return b(ops.im2col(b(ops.hardswish(depthwise(b, y))), kernel=[3, 1], **WINDOWS))

    same_ir(ChannelsLast()(model_of(Y, before)).module, model_of(Y, after))


def test_windows_of_one_pixel_are_the_pixels() -> None:
    def before(b: Body, y: Any) -> Any:
        whole = {"strides": [1, 1], "padding": [0, 0, 0, 0], "dilation": [1, 1]}
        return b(op.nn.relu(b(ops.im2col(y, kernel=[1, 1], **whole))))

    expected = model_of(Y, lambda b, y: b(op.nn.relu(y)))
    same_ir(ChannelsLast()(model_of(Y, before)).module, expected)


def test_the_permutation_of_one_pixel_is_a_reshape() -> None:
    def before(b: Body, y: Any) -> Any:
        return nhwc(b, b(op.nn.relu(nchw(b, y))))

    pixel = {"y": ["n", 1, 1, 6]}
    expected = model_of(pixel, lambda b, y: b(op.nn.relu(y)))
    same_ir(ChannelsLast()(model_of(pixel, before)).module, expected)


def test_a_cast_of_sizes_moves_with_them() -> None:
    def cast(b: Body, x: Any) -> Any:
        return b.builder.match_cast(x, relax.TensorType(x.ty.shape.values, "float32"))

    model = model_of(Y, lambda b, y: b(op.nn.relu(cast(b, nchw(b, y)))))
    moved = ChannelsLast()(model).module
    kinds = [binding.value.op.name for binding in bindings(moved["main"]) if is_call(binding)]
    assert kinds == ["relax.nn.relu", "relax.permute_dims"]


def is_call(binding: Any) -> bool:
    return isinstance(binding.value, relax.Call)


def test_a_batch_norm_is_of_the_last_axis() -> None:
    def normal(b: Body, x: Any, axis: int) -> Any:
        statistics = [constant(CHANNELS, 6) for _ in range(4)]
        return b(
            relax.TupleGetItem(b(op.nn.batch_norm(x, *statistics, axis, 1e-3, training=False)), 0)
        )

    model = model_of(Y, lambda b, y: normal(b, nchw(b, y), 1))
    same_ir(ChannelsLast()(model).module, model_of(Y, lambda b, y: nchw(b, normal(b, y, 3))))


def in_nchw_anyway(b: Body, y: Any) -> Any:
    return b(op.nn.softmax(nchw(b, y), axis=1))


def not_of_pixels(b: Body, y: Any) -> Any:
    return b(op.nn.relu(b(op.permute_dims(y, [3, 0, 1, 2]))))


def a_row_of_channels_of_its_own(b: Body, y: Any) -> Any:
    return b(op.add(nchw(b, y), constant(np.ones(9, np.float32), 9)))


def some_pixels(b: Body, y: Any) -> Any:
    return b(ops.im2col(y, kernel=[1, 1], **WINDOWS))


@pytest.mark.parametrize(
    "write", [in_nchw_anyway, not_of_pixels, a_row_of_channels_of_its_own, some_pixels]
)
def test_left_alone(write: Write) -> None:
    before = model_of(Y, write)
    same_ir(ChannelsLast()(before).module, before)
