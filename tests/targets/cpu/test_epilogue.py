import numpy as np
import pytest
from scipy.special import erf
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.epilogue import ACTIVATIONS
from lbcompiler.targets.cpu.intrinsics import at, let
from tests.targets.cpu.reference import WITHOUT_PRODUCTS, call, compiled

SPECIAL = [0, -0.0, 1e-30, -1e-30, 88, -88, 200, -200, np.nan, 3, -3, 1e30, 2**-149, 0.5, -0.5, 6]
X = np.concatenate([np.linspace(-12, 12, 4080), SPECIAL]).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


EXACT = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


@pytest.fixture(scope="module", params=WITHOUT_PRODUCTS, ids=lambda isa: isa.name)
def module(request):
    functions = {}
    for name, activation in ACTIVATIONS.items():
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            x = T.arg("x", T.buffer((len(X),), "float32"))
            y = T.arg("y", T.buffer((len(X),), "float32"))
            with T.serial(len(X) // 16) as i:
                T.buffer_store(y, activation(let(x[at(i * 16, 16)])), [at(i * 16, 16)])
        functions[f"f_{name}"] = builder.get()
    return compiled(request.param, **functions)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_within_a_few_units_in_the_last_place(module, name) -> None:
    (y,) = call(module[f"f_{name}"], [X], ((len(X),), "float32"))
    exact = EXACT[name](X.astype(np.float64))
    # of |x| / 8 where y is smaller: 1 + erf is a difference of near equals left of zero
    scale = np.maximum(np.abs(exact), np.abs(np.where(np.abs(X) < 64, X, 0)) / 8) + 1e-30
    error = np.abs(y - exact) / scale
    assert np.nanmax(error) <= 16 * 2**-23
    assert np.isnan(y[np.isnan(X)]).all()


def test_there_is_an_exact_form_of_each() -> None:
    assert ACTIVATIONS.keys() == EXACT.keys()
