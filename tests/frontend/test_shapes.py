"""What is decided about dimensions, and what is left open."""

import operator

import pytest
from tvm import tirx

from lbcompiler.errors import ConfigError
from lbcompiler.frontend.shapes import Shapes, Undecided, text
from lbcompiler.ir.model import Dim


@pytest.fixture
def shapes() -> Shapes:
    return Shapes()


def test_a_dimension_of_one_size_is_that_number(shapes: Shapes) -> None:
    assert shapes.variable(Dim("n", 4, 4)) == 4


def test_bounds_simplify_and_an_open_dimension_may_be_one(shapes: Shapes) -> None:
    n, b = shapes.variable(Dim("n")), shapes.variable(Dim("b", 1, 512))
    assert shapes.least(b, 512) is b or shapes.equal(shapes.least(b, 512), b)
    assert shapes.least(n, 1) == 1
    assert not shapes.equal(shapes.least(n, 512), n)
    with pytest.raises(Undecided):
        shapes.compare(operator.eq, n, 1)
    assert not shapes.compare(operator.eq, n, -1)
    assert shapes.compare(operator.gt, n, 0)


def test_equal_factors_divide_out(shapes: Shapes) -> None:
    n, b = shapes.variable(Dim("n")), shapes.variable(Dim("b"))
    half = shapes.floor_divide(n + 1, 2)
    assert shapes.quotient([b, half, 384], [b, half, 32]) == 12
    assert shapes.equal(shapes.quotient([b, n, 384], [b, 12, 32]), n)


@pytest.mark.parametrize(("a", "b"), [(7, 2), (-7, 2), (7, -2), (-7, -2), (2**60 + 1, 3)])
def test_division_goes_toward_zero(shapes: Shapes, a: int, b: int) -> None:
    assert shapes.truncate_divide(a, b) == (
        a // b if a * b > 0 else -(-a // b) if a < 0 else -(a // -b)
    )


def test_positions_from_the_end(shapes: Shapes) -> None:
    n = shapes.variable(Dim("n"))
    assert shapes.equal(shapes.from_end(-1, n), n - 1)
    assert shapes.from_end(3, n) == 3
    assert shapes.equal(shapes.clamp(shapes.from_end(-1, n), 0, n), n - 1)


def test_a_promise_of_the_model_bounds_a_dimension(shapes: Shapes) -> None:
    n = shapes.variable(Dim("n"))
    shapes.unify([n, tirx.min(n, 512)])
    assert shapes.promised == {"n": 512}


def test_a_size_reads_as_arithmetic(shapes: Shapes) -> None:
    n = shapes.variable(Dim("n"))
    assert text(shapes.floor_divide(n * 2 + 3, 4)) == "(n * 2 + 3) // 4"


def test_one_name_has_one_pair_of_bounds(shapes: Shapes) -> None:
    shapes.variable(Dim("n", 1, 8))
    with pytest.raises(ConfigError, match="bounded in two ways"):
        shapes.variable(Dim("n", 1, 9))
    with pytest.raises(ConfigError, match="no possible size"):
        shapes.variable(Dim("m", 3, 2))
