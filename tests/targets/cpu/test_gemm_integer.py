"""Integer GEMMs: every pair of formats, bit for bit, on every instruction set of this machine."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS, Quantized
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.kernels import kernel_for
from tests.targets.cpu.reference import (
    OF_INTEGERS,
    any_weight,
    compiled,
    integer_operands,
    linear_of,
    multiply,
)

SCALED = FORMATS["mxfp4"].scaled  # of a weight with a tensor scale
INTEGER = [fmt for fmt in FORMATS.values() if fmt.element.integer_multiplier is not None]
LOW = Config(
    rows=1, columns=2, depth=64, chunk=8, few_columns=2, small_columns=1
)  # one tile compiles fastest
M, N, K = 3, 37, 77
each_isa = pytest.mark.parametrize("isa", OF_INTEGERS, ids=lambda isa: isa.name)


def activations(fmt, seed: int) -> Quantized:
    """A row of plain numbers, one with the largest everywhere, one with a block of NaN."""
    x = np.random.default_rng(seed).standard_normal((M, K)).astype(np.float32)
    x[1] = np.where(x[1] > 0, fmt.element.max, -fmt.element.max)
    x[2, 40] = np.nan
    return fmt.quantize(x, per_row=True)


@each_isa
@pytest.mark.parametrize("weight", [*INTEGER, SCALED], ids=lambda fmt: fmt.name)
def test_every_code_and_scale_byte_of_every_pair(isa, weight) -> None:
    kernels = {act.name: kernel_for(weight, act, isa) for act in INTEGER}
    module = compiled(
        isa, **{name: k.gemm(N, K, bias=False, config=LOW) for name, k in kernels.items()}
    )
    for seed, (name, kernel) in enumerate(kernels.items()):
        w, q = any_weight(weight, N, K, seed), activations(kernel.act, seed)
        y = multiply(kernel, module[name], integer_operands(kernel, q), w)
        np.testing.assert_array_equal(y, linear_of(kernel, q, w))
        assert np.isfinite(y[:2]).mean() > 0.4  # it is not NaN that is compared


@each_isa
@pytest.mark.parametrize("name", ["mxint8", "mxfp6"])
def test_the_largest_products_do_not_overflow(isa, name) -> None:
    """All codes at their limits: 127 * 127 * 32, and the sums of two products that AVX2 makes."""
    fmt = FORMATS[name]
    kernel = kernel_for(fmt, FORMATS["mxint8"], isa)
    module = compiled(isa, gemm=kernel.gemm(16, 64, bias=False, config=LOW))
    x = np.full((2, 64), 127, np.float32)
    x[1, ::2] = -127
    w = fmt.quantize(np.full((16, 64), fmt.element.max, np.float32))
    w.codes[8:] = fmt.element.encode(np.float32(-fmt.element.max))
    if name == "mxint8":
        w.codes[12:] = 0x80  # -128, which is read though never written
    q = kernel.act.quantize(x, per_row=True)
    y = multiply(kernel, module["gemm"], integer_operands(kernel, q), w)
    np.testing.assert_array_equal(y, linear_of(kernel, q, w))


@pytest.mark.parametrize("exponents", [(-63, -61), (61, 63), (-70, 70)])
@each_isa
def test_exponents_at_the_limit_of_what_is_added(isa, exponents) -> None:
    """Both scales near the limit at once: their sum is the smallest or largest that is added."""
    rng = np.random.default_rng(0)
    config = Config(rows=2, columns=1, depth=64, chunk=4, few_columns=2, small_columns=1)
    for name in ("mxint8", "mxfp6", "mxfp4"):
        kernel = kernel_for(FORMATS[name], FORMATS[name], isa)
        codes = np.arange(1 << kernel.act.element.bits, dtype=np.uint8)
        x, w = (
            Quantized(
                rng.permuted(np.resize(codes, (rows, K)), axis=1),
                (127 + rng.integers(exponents[0], exponents[1] + 1, (rows, 3))).astype(np.uint8),
                None,
            )
            for rows in (9, N)
        )
        if name == "mxint8":
            x.codes[x.codes == 128] = 127  # -128 is never an activation
        module = compiled(isa, gemm=kernel.gemm(N, K, bias=False, config=config))
        y = multiply(kernel, module["gemm"], integer_operands(kernel, x), w)
        np.testing.assert_array_equal(y, linear_of(kernel, x, w))
