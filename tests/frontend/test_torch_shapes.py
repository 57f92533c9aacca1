"""Symbols, their bounds, and what a caller may ask of them."""

from typing import Any

import pytest
from tvm import tirx

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch import import_torch
from lbcompiler.frontend.torch_shapes import Shapes
from lbcompiler.ir.model import Dim, Model

torch = pytest.importorskip("torch")
sympy = pytest.importorskip("sympy")
functions = pytest.importorskip("torch.utils._sympy.functions")


class Sum(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: Any, y: Any) -> Any:
        return x + y


@pytest.fixture(scope="module")
def program() -> Any:
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", max=512)
    dims = {"x": {0: batch, 1: 8 * length}, "y": {0: batch, 1: 8 * length}}
    inputs = (torch.ones(4, 16, 3), torch.ones(4, 16, 3))
    return torch.export.export(Sum(), inputs, dynamic_shapes=dims)


def imported(program: Any, **shapes: Any) -> Model:
    return import_torch(program, shapes)


def test_a_multiple_is_one_dimension(program: Any) -> None:
    model = imported(program)
    assert model.dims == (Dim("x_0", 2, 64), Dim("x_1", 16, 4096))
    assert model.inputs[0].shape == ("x_0", "x_1", 3)
    assert model.inputs[1].shape == ("x_0", "x_1 // 8 * 8", 3)


def test_one_answer_holds_for_every_input(program: Any) -> None:
    fixed = imported(program, y=[4, 24, 3])
    assert fixed.dims == ()
    assert fixed.inputs[0].shape == fixed.inputs[1].shape == (4, 24, 3)
    named = imported(program, y=["rows", Dim("columns", high=80), 3])
    assert named.dims == (Dim("rows", 2, 64), Dim("columns", 16, 80))
    assert named.inputs[0].shape[0] == "rows"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": [1]}, "has no input z: its inputs are x, y"),
        ({"x": [1, 2]}, "has 3 dimensions"),
        ({"x": [4, 16, 5]}, "dimension 2 of input x .* is fixed to 3, not 5"),
        ({"x": [1, 16, 3]}, "exported for 2 to 64: 1 is outside"),
        ({"x": [4, 20, 3]}, "cannot be 20"),
        ({"x": [Dim("n", 2, 100), 16, 3]}, "100 is outside"),
        ({"x": [4, 16, 3], "y": [5, 16, 3]}, "is fixed to 4, not 5"),
        ({"x": [Dim("n", 4, 8), 16, 3], "y": [Dim("m", 2, 8), 16, 3]}, None),
        ({"x": [Dim("n", 2, 8), 16, 3], "y": [Dim("m", 4, 9), 16, 3]}, "the same size as n"),
    ],
)
def test_what_was_asked_is_possible_or_an_error(
    program: Any, shapes: dict[str, Any], message: str | None
) -> None:
    if message is None:  # a wider bound agrees with a narrower one
        assert imported(program, **shapes).dims == (Dim("n", 4, 8),)
        return
    with pytest.raises(ModelError, match=message):
        imported(program, **shapes)


def test_expressions_become_tir_and_bounds_simplify_them() -> None:
    shapes = Shapes()
    n = shapes.define(Dim("n", 2, 100))
    shapes.symbols["s"] = n
    shapes.symbols["k"] = 7
    s, k = (sympy.Symbol(name, positive=True, integer=True) for name in "sk")
    assert shapes.extent(functions.Min(1, s)) == 1
    assert shapes.extent(k * 3 + 1) == 22
    assert shapes.extent(functions.FloorDiv(k, 2)) == 3
    assert shapes.extent(functions.Max(s, 1)).same_as(n) or shapes.same(shapes.extent(s), n)
    assert shapes.same(shapes.extent(s**2 + 1), n * n + 1)
    half = functions.FloorToInt(functions.FloatTrueDiv(functions.ToFloat(s), 2.0))
    assert shapes.same(shapes.extent(half), tirx.floordiv(n, 2))
    up = functions.CeilToInt(functions.IntTrueDiv(s, 4))
    assert shapes.same(shapes.extent(up), tirx.floordiv(n + 3, 4))
    scaled = functions.FloorToInt(functions.ToFloat(s) * sympy.Float(1.5))
    assert shapes.same(shapes.extent(scaled), tirx.floordiv(n * 3, 2))
    with pytest.raises(ModelError, match="uses sin"):
        shapes.extent(sympy.sin(s))
    with pytest.raises(ModelError, match="computed from data"):
        shapes.extent(sympy.Symbol("u0"))
