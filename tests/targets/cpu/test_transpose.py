import numpy as np
import pytest
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import at, bound, kernel, root_block
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.transpose import transposed
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
