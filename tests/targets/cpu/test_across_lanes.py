import numpy as np
import pytest
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.across_lanes import largest_of, sum_of, sums_of, transposed
from lbcompiler.targets.cpu.intrinsics import at, bound, kernel, root_block
from lbcompiler.targets.cpu.isa import detect
from tests.targets.cpu.reference import call, compiled


@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_a_square_is_turned(lanes: int) -> None:
    with kernel() as builder:
        x = T.arg("x", T.buffer((lanes, lanes), "float32"))
        y = T.arg("y", T.buffer((lanes, lanes), "float32"))
        with root_block():
            rows = [bound(x[i, at(0, lanes)]) for i in range(lanes)]
            for i, column in enumerate(transposed(rows)):
                T.buffer_store(y, column, [i, at(0, lanes)])
    square = np.arange(lanes * lanes, dtype=np.float32).reshape(lanes, lanes)
    turn = compiled(detect(), turn=builder.get())["turn"]
    np.testing.assert_array_equal(call(turn, [square], (square.shape, "float32"))[0], square.T)


def test_sums_and_maxima_across_lanes() -> None:
    with kernel() as builder:
        x = T.arg("x", T.buffer((16, 16), "float32"))
        y = T.arg("y", T.buffer((3, 16), "float32"))
        with root_block():
            rows = [bound(x[i, at(0, 16)]) for i in range(16)]
            T.buffer_store(y, sums_of(rows), [0, at(0, 16)])
            for i, row in enumerate(rows):
                T.buffer_store(y, sum_of(row), [1, i])
                T.buffer_store(y, largest_of(row), [2, i])
    square = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    function = compiled(detect(), across=builder.get())["across"]
    together, alone, largest = call(function, [square], ((3, 16), "float32"))[0]
    np.testing.assert_allclose(together, square.sum(1, dtype=np.float64), atol=1e-5)
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(largest, square.max(1))
