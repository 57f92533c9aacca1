"""The emulator notices what a GPU may do to a wrong kernel."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.emulator.build import Emulated, emulate
from tests.emulator.ptx import NotEmulatedError, translate
from tests.targets.cuda.reference import SM_80, SMALL, activation_operands, products

N, K = 32, 512
SEEDS = range(8)
FMT = FORMATS["mxint4"]
KERNEL = kernel_for(FMT, FMT, SM_80)
ROWS = {"gemm_kernel": 3, "gemm_kernel_1": 13, "gemm_kernel_2": 40}  # that each kernel is run with


@pytest.fixture(scope="module")
def functions() -> Emulated:
    return emulate({"gemm": KERNEL.gemm(N, K, bias=False, config=SMALL)})


def differences(functions: Emulated, m: int, without: int | None = None) -> int:
    """Of how many seeds the result is wrong, or the kernel fails. Integers: sums are exact."""
    rng = np.random.default_rng(0)
    x = rng.integers(-7, 8, (m, K)).astype(np.float32)
    x[:, ::32] = 7
    w = FMT.quantize(rng.integers(-7, 8, (N, K)).astype(np.float32))
    operands, wrong = activation_operands(KERNEL, x), 0
    for seed in SEEDS:
        y = np.full((m, N), np.nan, np.float32)
        ends = functions.ends("gemm", *operands, *KERNEL.pack(w), y, seed=seed, without=without)
        wrong += not (ends and np.array_equal(y, x @ products(w, FMT).T))
    return wrong


@pytest.mark.parametrize("m", ROWS.values())
def test_the_kernels_as_they_are(functions, m) -> None:
    assert differences(functions, m) == 0


def test_a_kernel_without_one_of_its_waits_fails(functions) -> None:
    assert {kernel for kernel, _ in functions.waits} == set(ROWS)
    kinds = {statement.split("(")[0] for _, statement in functions.waits}
    assert len(kinds) == 3  # barriers of the block, of a warp, and waits for copies
    for number, (kernel, statement) in enumerate(functions.waits):
        assert differences(functions, ROWS[kernel], number), (kernel, statement)


def test_an_unknown_instruction_is_an_error() -> None:
    with pytest.raises(NotEmulatedError, match=r"wgmma\.unknown"):
        translate('asm volatile("wgmma.unknown %0;" :: "r"(x));')
