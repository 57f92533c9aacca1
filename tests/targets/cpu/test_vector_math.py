"""The polynomial forms against float64 over every binade, and at the named corners."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from scipy.special import erf as erf64
from tvm.script import tirx as T

from lbcompiler.targets.cpu import vector_math

N = 1 << 20
INF, NAN = np.float32(np.inf), np.float32(np.nan)
FUNCTIONS = ("exp", "log", "erf", "tanh", "sigmoid")


def sigmoid64(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp,
    "log": np.log,
    "erf": erf64,
    "tanh": np.tanh,
    "sigmoid": sigmoid64,
}
MAX_ULP = {"exp": 1.5, "log": 1.5, "erf": 8, "tanh": 7, "sigmoid": 3}


def kernel(build: Callable[[Any], Any], lanes: int) -> tvm.tirx.PrimFunc:
    if lanes == 1:

        @T.prim_func
        def scalar(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")):
            for i in range(N):
                y[i] = build(x[i])

        return scalar

    @T.prim_func
    def vector(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")):
        for i in range(N // lanes):
            y[T.ramp(i * lanes, 1, lanes)] = build(x[T.ramp(i * lanes, 1, lanes)])

    return vector


@cache
def compiled(lanes: int) -> Any:
    functions = {
        name: kernel(getattr(vector_math, f"vector_{name}"), lanes).with_attr("global_symbol", name)
        for name in FUNCTIONS
    }
    return tvm.compile(tvm.IRModule(functions), target="llvm")


def evaluate(name: str, x: np.ndarray, lanes: int = 16) -> np.ndarray:
    padded = np.zeros(N, np.float32)
    padded[: x.size] = x
    y = tvm.runtime.tensor(np.empty(N, np.float32))
    compiled(lanes)[name](tvm.runtime.tensor(padded), y)
    return y.numpy()[: x.size]


def samples() -> list[np.ndarray]:
    """Every binade of both signs, and the range where the functions bend, densely."""
    every_4099th = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    bend = np.linspace(-110, 110, N, dtype=np.float32)
    near = np.linspace(-10, 10, N, dtype=np.float32)
    return [every_4099th[:N][np.isfinite(every_4099th[:N])], bend, near]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_error_is_within_the_documented_ulps(name: str) -> None:
    for x in samples():
        if name == "log":
            x = np.abs(x) + np.float32(1e-45)
        with np.errstate(over="ignore"):
            exact = EXACT[name](x.astype(np.float64))
            rounded = exact.astype(np.float32)
        is_finite = np.isfinite(rounded)
        found = evaluate(name, x)
        np.testing.assert_array_equal(found[~is_finite], rounded[~is_finite])
        ulp = np.spacing(np.abs(rounded[is_finite])).astype(np.float64)
        error = np.abs(found[is_finite].astype(np.float64) - exact[is_finite])
        if name == "sigmoid":
            error[exact[is_finite] < 1e-38] -= 2e-38
        worst = int(np.argmax(error / ulp))
        assert error[worst] <= MAX_ULP[name] * ulp[worst], (
            x[is_finite][worst],
            found[is_finite][worst],
            error[worst] / ulp[worst],
        )


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        (
            "exp",
            [0, -0.0, INF, -INF, NAN, 200, -200, 89, -104],
            [1, 1, INF, 0, NAN, INF, 0, INF, 0],
        ),
        ("log", [0, -0.0, INF, -INF, NAN, 1, -1], [-INF, -INF, INF, NAN, NAN, 0, NAN]),
        ("erf", [0, -0.0, INF, -INF, NAN, 1e30, -1e30, 1e-45], [0, -0.0, 1, -1, NAN, 1, -1, 1e-45]),
        ("tanh", [0, -0.0, INF, -INF, NAN, 50, -50, 1e-45], [0, -0.0, 1, -1, NAN, 1, -1, 1e-45]),
        ("sigmoid", [0, -0.0, INF, -INF, NAN, 200, -200], [0.5, 0.5, 1, 0, NAN, 1, 0]),
    ],
)
@pytest.mark.parametrize("lanes", [1, 16])
def test_corners(name: str, x: list[float], y: list[float], lanes: int) -> None:
    found = evaluate(name, np.array(x, np.float32), lanes)
    np.testing.assert_array_equal(found, np.array(y, np.float32))
    zeros = found == 0
    np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(np.float32(y))[zeros])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_call_is_left_in_a_vector_loop(name: str) -> None:
    @T.prim_func
    def loop(x: T.Buffer((N,), "float32"), y: T.Buffer((N,), "float32")):
        for i in range(N // 16):
            for j in T.vectorized(16):
                y[i * 16 + j] = getattr(vector_math, f"vector_{name}")(x[i * 16 + j])

    text = tvm.compile(loop, target={"kind": "llvm", "mcpu": "x86-64-v4"}).mod.inspect_source("asm")
    assert f"{name}f" not in text
    assert "zmm" in text


def test_neighbouring_arguments_never_swap_order() -> None:
    """A softmax or an argmax over exp must not reorder what it is given."""
    x = np.linspace(-80, 80, N, dtype=np.float32)
    assert (np.diff(evaluate("exp", x)) >= 0).all()
