"""The exact GEMMs of every format, as their CUDA text runs in the emulator."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS, stored_format
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.emulator.build import emulate
from tests.targets.cuda.reference import (
    SM_80,
    SMALL,
    activation_operands,
    rows_of,
    sum_tolerance,
)

N, K = 37, 200  # neither whole tiles nor whole blocks
ROWS = (1, 8, 13, 16, 45)  # three kernels, whole and with tails
FACTOR = np.float32(4 / 3)  # of a weight with a tensor scale
each_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module", params=[*FORMATS, "mxfp4_scaled"])
def built(request):
    """(format, host functions) with activations in the same format and without."""
    fmt = stored_format(request.param)
    functions = {
        "w_a": kernel_for(fmt, fmt.plain or fmt, SM_80).gemm(N, K, bias=True, config=SMALL),
        "w": kernel_for(fmt, None, SM_80).gemm(N, K, bias=False, config=SMALL),
    }
    return fmt, emulate(functions)


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("mode", ["w_a", "w"])
def test_is_the_reference_up_to_the_order_of_the_sum(built, mode, m) -> None:
    fmt, functions = built
    rng = np.random.default_rng(m)
    kernel = kernel_for(fmt, (fmt.plain or fmt) if mode == "w_a" else None, SM_80)
    w = fmt.quantize(rng.standard_normal((N, K)).astype(np.float32), tensor_scale=FACTOR)
    operands = activation_operands(kernel, rng.standard_normal((m, K)).astype(np.float32))
    packed = kernel.pack(w)
    bias = rng.standard_normal(N).astype(np.float32) if mode == "w_a" else None
    y = np.full((m, N), np.nan, np.float32)
    extra = [] if bias is None else [bias]
    functions(mode, *operands, *packed, *extra, y, seed=m)
    x, values = rows_of(operands, K), fmt.dequantize(w).astype(np.float64)
    wanted = x @ values.T + (0 if bias is None else bias)
    assert (np.abs(y - wanted) <= sum_tolerance(kernel, x, values, bias)).all()


def test_a_nan_stays_in_its_row_and_its_column(built) -> None:
    fmt, functions = built
    kernel = kernel_for(fmt, None, SM_80)
    x = np.ones((20, K), np.float32)
    x[3, 5] = np.nan
    x[4, 70] = np.inf
    w = np.ones((N, K), np.float32)
    w[7, 199] = np.nan
    y = np.zeros((20, N), np.float32)
    functions("w", *activation_operands(kernel, x), *kernel.pack(fmt.quantize(w)), y)
    finite = np.ones((20, N), bool)
    finite[3], finite[4], finite[:, 7] = False, False, False
    np.testing.assert_array_equal(np.isfinite(y), finite)
    assert (y[4, np.arange(N) != 7] == np.inf).all()
