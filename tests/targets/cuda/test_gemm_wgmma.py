"""The GEMM of sm_90a: TMA, mbarriers and wgmma, as the emulator has them."""

from dataclasses import replace

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.emulator.build import emulate
from tests.targets.cuda.reference import (
    SMALL,
    activation_operands,
    products,
    rows_of,
    sum_tolerance,
)

SM_90A = arch_named("sm_90a")
CONFIG = replace(SMALL, tokens=32, wide_stages=2, blocks=3, group=2)
M, N, K = 70, 200, 170  # six shares of y for three blocks, none of them whole, of three tiles of k
FEW_FORMATS = ("nvfp4", "mxint8", "mxfp6")  # 4, 8 and 6 bits; each step is that of the other GEMMs


@pytest.fixture(scope="module", params=FEW_FORMATS)
def built(request):
    fmt = FORMATS[request.param]
    functions = {
        "w_a": kernel_for(fmt, fmt, SM_90A).gemm(N, K, bias=True, config=CONFIG),
        "w": kernel_for(fmt, None, SM_90A).gemm(N, K, bias=False, config=CONFIG),
    }
    return fmt, emulate(functions, SM_90A.name)


@pytest.mark.parametrize("m", [33, M, 4 * 32 + 5])
@pytest.mark.parametrize("mode", ["w_a", "w"])
def test_is_the_reference_up_to_the_order_of_the_sum(built, mode, m) -> None:
    fmt, functions = built
    rng = np.random.default_rng(m)
    kernel = kernel_for(fmt, fmt if mode == "w_a" else None, SM_90A)
    w = fmt.quantize(rng.standard_normal((N, K)).astype(np.float32))
    operands = activation_operands(kernel, rng.standard_normal((m, K)).astype(np.float32))
    bias = rng.standard_normal(N).astype(np.float32) if mode == "w_a" else None
    y = np.full((m, N), np.nan, np.float32)
    extra = [] if bias is None else [bias]
    functions(mode, *operands, *kernel.pack(w), *extra, y, seed=m)
    x, values = rows_of(operands, K), fmt.dequantize(w).astype(np.float64)
    wanted = x @ values.T + (0 if bias is None else bias)
    assert (np.abs(y - wanted) <= sum_tolerance(kernel, x, values, bias)).all()


def test_a_kernel_without_one_of_its_waits_fails() -> None:
    fmt, n, k, m = (
        FORMATS["mxint4"],
        128,
        192,
        70,
    )  # an odd number of tiles, and three shares a block
    kernel = kernel_for(fmt, fmt, SM_90A)
    config = replace(CONFIG, blocks=1)
    functions = emulate({"gemm": kernel.gemm(n, k, bias=False, config=config)}, SM_90A.name)
    rng = np.random.default_rng(0)
    x = rng.integers(-7, 8, (m, k)).astype(np.float32)
    x[:, ::32] = 7
    w = fmt.quantize(rng.integers(-7, 8, (n, k)).astype(np.float32))
    operands, wanted = activation_operands(kernel, x), x @ products(w, fmt).T  # integers: exact

    def is_right(seed: int, without: int | None) -> bool:
        y = np.full((m, n), np.nan, np.float32)
        ends = functions.ends("gemm", *operands, *kernel.pack(w), y, seed=seed, without=without)
        return ends and np.array_equal(y, wanted)

    assert all(is_right(seed, None) for seed in range(4))
    waits = [(i, what) for i, (name, what) in enumerate(functions.waits) if name == "gemm_kernel_3"]
    assert len(waits) == 4  # after the mbarriers are there; empty, full; the products
    for number, what in waits:
        assert not all(is_right(seed, number) for seed in range(8)), what
