"""Every activation of a linear, in the text of a GEMM."""

import numpy as np
import pytest

from lbcompiler.epilogues import EPILOGUES
from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda import epilogue
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.emulator.build import emulate
from tests.targets.cuda.reference import SM_80, SMALL, activation_operands

FMT = FORMATS["mxint8"]
KERNEL = kernel_for(FMT, FMT, SM_80)
UNITS = 16 * 2.0**-24  # each function's few units in the last place, once more rounded a few times


@pytest.fixture(scope="module")
def functions():
    return emulate({n: KERNEL.gemm(32, 32, bias=True, epilogue=n, config=SMALL) for n in EPILOGUES})


def test_the_names_are_those_of_linears() -> None:
    assert set(epilogue.EPILOGUES) == set(EPILOGUES)


@pytest.mark.parametrize("name", EPILOGUES)
def test_is_its_reference(functions, name) -> None:
    x = np.zeros((20, 32), np.float32)
    x[:, 0] = np.linspace(-9.5, 9.5, 20)  # multiples of 0.5: MXINT8 has them
    x[:, 1] = 64
    w = np.eye(32, dtype=np.float32)
    w[:, 0] = 1  # y[m, n] = x[m, 0] + small change
    bias = np.linspace(-1, 1, 32).astype(np.float32)
    operands, packed = activation_operands(KERNEL, x), KERNEL.pack(FMT.quantize(w))
    plain, y = np.zeros((20, 32), np.float32), np.zeros((20, 32), np.float32)
    functions("none", *operands, *packed, bias, plain)
    functions(name, *operands, *packed, bias, y)
    wanted = EPILOGUES[name](plain.astype(np.float64))
    np.testing.assert_allclose(y, wanted, rtol=0, atol=UNITS * max(1, np.abs(plain).max()))
