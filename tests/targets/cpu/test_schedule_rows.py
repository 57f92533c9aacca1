"""Softmax, norms and reductions against numpy, with rows shorter and longer than a vector."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import relax

from tests.targets.cpu.relax_runner import B, H, L, assembly, function, normal

op = relax.op


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def layer_norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def decomposed_norm(x: Any) -> Any:
    centred = op.subtract(x, op.mean(x, [-1], keepdims=True))
    variance = op.mean(op.power(centred, relax.const(2.0)), [-1], keepdims=True)
    return op.divide(centred, op.sqrt(op.add(variance, relax.const(1e-5))))


@pytest.mark.parametrize(
    ("emit", "numpy"),
    [
        pytest.param(lambda x: op.nn.softmax(x, -1), softmax, id="softmax"),
        pytest.param(
            lambda x: op.nn.log_softmax(x, -1), lambda x: np.log(softmax(x)), id="log_softmax"
        ),
        pytest.param(decomposed_norm, layer_norm, id="layer norm in single steps"),
        pytest.param(
            lambda x: op.variance(x, [1, 2]), lambda x: x.var((1, 2)), id="variance of two axes"
        ),
        pytest.param(lambda x: op.max(x, [-1]), lambda x: x.max(-1), id="max"),
        pytest.param(lambda x: op.mean(x), lambda x: x.mean(), id="mean of everything"),
        pytest.param(lambda x: op.argmax(x, -1), lambda x: x.argmax(-1), id="argmax"),
        pytest.param(
            lambda x: op.nn.softmax(op.multiply(x, relax.const(0.1)), -1),
            lambda x: softmax(0.1 * x),
            id="softmax of a product",
        ),
    ],
)
def test_rows(emit: Callable[..., Any], numpy: Callable[..., Any]) -> None:
    built = function(emit, (B, L, H))
    assert set(built.rules) <= {"rows", "stages"}
    assert "rows" in built.rules
    for size in ((2, 3, 1), (2, 5, 7), (3, 150, 70)):
        x = normal(*size)
        np.testing.assert_allclose(built(x), numpy(x.astype(np.float64)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", ["sum", "max", "min", "prod"])
def test_reductions_across_rows(name: str, axis: int, keepdims: bool) -> None:
    built = function(lambda x: getattr(op, name)(x, [axis], keepdims), (B, L, H))
    for size in ((2, 5, 7), (20, 12, 70)):
        x = normal(*size)
        exact = getattr(np, name)(x.astype(np.float64), axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(built(x), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_across_rows(axis: int) -> None:
    built = function(lambda x: op.nn.softmax(x, axis), (B, L, H))
    x = normal(4, 50, 60)
    np.testing.assert_allclose(built(x), softmax(x.astype(np.float64), axis), rtol=1e-5)


def test_norms_with_weights() -> None:
    x, gamma, beta = normal(3, 60, 70), normal(70, seed=1), normal(70, seed=2)
    built = function(lambda x, g, b: op.nn.layer_norm(x, g, b, [-1]), (B, L, 70), (70,), (70,))
    assert built.rules == ["rows"]
    expected = layer_norm(x.astype(np.float64)) * gamma + beta
    np.testing.assert_allclose(built(x, gamma, beta), expected, rtol=1e-4, atol=1e-5)
    built = function(lambda x, g: op.nn.rms_norm(x, g, [-1]), (B, L, 70), (70,))
    assert built.rules == ["rows"]
    mean_square = (x.astype(np.float64) ** 2).mean(-1, keepdims=True)
    np.testing.assert_allclose(
        built(x, gamma), x / np.sqrt(mean_square + 1e-5) * gamma, rtol=1e-4, atol=1e-5
    )


def test_group_norm() -> None:
    x, gamma, beta = normal(2, 12, 9, 11), normal(12, seed=1), normal(12, seed=2)
    built = function(
        lambda x, g, b: op.nn.group_norm(x, g, b, 4, 1, [2, 3]), (B, 12, L, H), (12,), (12,)
    )
    assert built.rules == ["rows"]
    groups = layer_norm(x.astype(np.float64).reshape(2, 4, -1)).reshape(x.shape)
    expected = groups * gamma[:, None, None] + beta[:, None, None]
    np.testing.assert_allclose(built(x, gamma, beta), expected, rtol=1e-4, atol=1e-5)


def test_equal_extremes_give_the_first_index() -> None:
    built = function(lambda x: op.argmin(x, -1), (B, L), dtypes=["int64"])
    np.testing.assert_array_equal(built(np.array([[3, 1, 1], [2, 2, 2]])), [1, 0])


def test_a_row_of_minus_infinity_is_nan_in_softmax_as_everywhere() -> None:
    built = function(lambda x: op.nn.softmax(x, -1), (B, L))
    x = normal(2, 20)
    x[0] = -np.inf
    assert np.isnan(built(x)[0]).all()
    np.testing.assert_allclose(built(x)[1].sum(), 1, rtol=1e-6)


def test_softmax_is_one_pass_over_the_rows_and_has_no_scalar_exp() -> None:
    built = function(lambda x: op.nn.softmax(x, -1), (B, 12, L, H))
    assert built.rules == ["rows"]
    assert "expf" not in assembly(built)
