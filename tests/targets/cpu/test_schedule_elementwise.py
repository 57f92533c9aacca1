"""Elementwise kernels against numpy: below and above the size from which they run in parallel."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from scipy.special import erf
from tvm import relax, tirx

from tests.targets.cpu.relax_runner import B, H, L, assembly, function, normal

op = relax.op
SMALL, LARGE = (2, 33, 19), (3, 150, 70)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


@pytest.mark.parametrize(
    ("emit", "numpy"),
    [
        pytest.param(op.nn.gelu, gelu, id="gelu"),
        pytest.param(op.nn.silu, lambda x: x / (1 + np.exp(-x)), id="silu"),
        pytest.param(op.tanh, np.tanh, id="tanh"),
        pytest.param(lambda x: op.power(x, relax.const(3.0)), lambda x: x**3, id="cube"),
        pytest.param(lambda x: op.greater(x, relax.const(0.0)), lambda x: x > 0, id="to bool"),
        pytest.param(lambda x: op.astype(x, "int64"), lambda x: x.astype(np.int64), id="to int64"),
        pytest.param(lambda x: op.triu(x, 1), lambda x: np.triu(x, 1), id="triu"),
        pytest.param(lambda x: op.flip(x, 2), lambda x: x[..., ::-1], id="flip"),
        pytest.param(
            lambda x: op.nn.pad(x, [0, 0, 1, 2, 3, 4]),
            lambda x: np.pad(x, ((0, 0), (1, 2), (3, 4))),
            id="pad",
        ),
        pytest.param(
            lambda x: op.concat([op.negative(x), x, x], -1),
            lambda x: np.concatenate([-x, x, x], -1),
            id="concat of the last axis",
        ),
        pytest.param(
            lambda x: op.concat([x, x], 0), lambda x: np.concatenate([x, x]), id="concat of rows"
        ),
        pytest.param(
            lambda x: op.strided_slice(x, [-1], [1], [-1]), lambda x: x[..., 1:-1], id="slice"
        ),
        pytest.param(
            lambda x: op.strided_slice(x, [-1], [0], [1 << 30], [2]),
            lambda x: x[..., ::2],
            id="strided slice",
        ),
        pytest.param(lambda x: op.tile(x, (2, 1, 3)), lambda x: np.tile(x, (2, 1, 3)), id="tile"),
        pytest.param(lambda x: op.repeat(x, 3, 1), lambda x: np.repeat(x, 3, 1), id="repeat"),
    ],
)
@pytest.mark.parametrize("rows", ["symbolic", "static"])
def test_elementwise(emit: Callable[..., Any], numpy: Callable[..., Any], rows: str) -> None:
    shape = (B, L, H) if rows == "symbolic" else LARGE
    built = function(emit, shape)
    assert set(built.rules) <= {"stages"}
    for size in (SMALL, LARGE) if rows == "symbolic" else (LARGE,):
        x = normal(*size)
        np.testing.assert_allclose(built(x), numpy(x.astype(np.float64)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", [[0, 2, 1, 3], [0, 1, 3, 2], [3, 2, 1, 0], [0, 2, 3, 1]])
def test_transposes(axes: list[int]) -> None:
    built = function(lambda x: op.permute_dims(x, axes), (B, L, 5, H))
    for size in ((2, 33, 5, 19), (1, 48, 5, 64)):
        x = normal(*size)
        np.testing.assert_array_equal(built(x), x.transpose(axes))


def test_gathers() -> None:
    table, ids = normal(100, 70), np.random.default_rng(0).integers(0, 100, (3, 60))
    take = function(lambda x, i: op.take(x, i, 0), (100, L), (B, H), dtypes=["float32", "int64"])
    np.testing.assert_array_equal(take(table, ids), table[ids])
    columns = ids % 70
    elements = function(
        lambda x, i: op.gather_elements(x, i, 1), (B, L), (B, H), dtypes=["float32", "int64"]
    )
    np.testing.assert_array_equal(
        elements(table[:3], columns), np.take_along_axis(table[:3], columns, 1)
    )


def test_a_rotation_by_halves_is_vectorized() -> None:
    """Concatenation branches on the vector axis: cut there, each part is a plain copy."""
    built = function(
        lambda x: op.concat(
            [
                op.negative(op.strided_slice(x, [2], [32], [64])),
                op.strided_slice(x, [2], [0], [32]),
            ],
            -1,
        ),
        (B, L, 64),
    )
    x = normal(3, 70, 64)
    np.testing.assert_array_equal(built(x), np.concatenate([-x[..., 32:], x[..., :32]], -1))
    (kernel,) = built.scheduled
    assert "if_then_else" not in kernel.script()


def test_what_is_read_twice_needs_no_memory() -> None:
    built = function(lambda x, y: op.nn.silu(op.exp(op.add(x, y))), (B, L), (B, L))
    x, y = normal(5, 7), normal(5, 7, seed=1)
    s = np.exp((x + y).astype(np.float64))
    np.testing.assert_allclose(built(x, y), s / (1 + np.exp(-s)), rtol=1e-5)
    scratch: list[Any] = []
    for kernel in built.scheduled:
        tvm_ffi.structural_walk(kernel.body, (tirx.AllocBuffer, scratch.append))
    assert not scratch


def test_no_scalar_libm_call_is_left() -> None:
    built = function(lambda x: op.nn.gelu(op.tanh(op.log(op.exp(x)))), (B, L))
    text = assembly(built)
    for name in ("expf", "erff", "tanhf", "logf"):
        assert name not in text
