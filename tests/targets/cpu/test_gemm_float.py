"""Float GEMMs: bit for bit a chain of FMAs over exactly dequantized operands."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS, Quantized
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.isa import AVX512_AMX, AVX512_BF16
from lbcompiler.targets.cpu.kernels import kernel_for
from tests.targets.cpu.reference import (
    HERE,
    affine,
    any_weight,
    compiled,
    exact_values,
    float_sums,
    linear_of,
    multiply,
    pair_operands,
)

LOW = Config(
    rows=1, columns=2, depth=64, chunk=8, few_columns=2, small_columns=1
)  # one tile compiles fastest
M, N, K = 3, 37, 77
each_isa = pytest.mark.parametrize("isa", HERE, ids=lambda isa: isa.name)


def rows() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((M, K)).astype(np.float32)
    x[1] *= np.float32(1e-38)
    x[2, 3], x[2, 70] = np.inf, -0.0
    return x


@each_isa
@pytest.mark.parametrize("weight", FORMATS.values(), ids=FORMATS)
def test_every_code_and_scale_byte_under_float_activations(isa, weight) -> None:
    """The one function serves every activation that arrives as code * scale in float32."""
    kernel = kernel_for(weight, None, isa)
    module = compiled(isa, gemm=kernel.gemm(N, K, bias=False, config=LOW))
    w = any_weight(weight, N, K, seed=1)
    y = multiply(kernel, module["gemm"], [rows()], w)
    sums = float_sums(rows(), exact_values(w, weight))
    np.testing.assert_array_equal(y, affine(sums, w.tensor_scale, None))
    assert np.isfinite(y[:2]).mean() > 0.2  # it is not NaN that is compared


@each_isa
@pytest.mark.parametrize("k", [1, 3, 31, 66])
def test_a_short_block_ends_where_k_does(isa, k) -> None:
    for name in ("mxfp8", "mxfp6_e3m2", "mxint4"):  # 1, 4 and 2 k's a load
        kernel = kernel_for(FORMATS[name], None, isa)
        module = compiled(isa, gemm=kernel.gemm(5, k, bias=False, config=LOW))
        x = rows()[:1, :k]
        w = FORMATS[name].quantize(np.random.default_rng(k).standard_normal((5, k)))
        y = multiply(kernel, module["gemm"], [x], w)
        np.testing.assert_array_equal(y, float_sums(x, exact_values(w, FORMATS[name])))


@each_isa
@pytest.mark.parametrize("k", [1, 4, 77])
def test_weights_that_were_not_quantized(isa, k) -> None:
    kernel = kernel_for(None, None, isa)
    module = compiled(isa, gemm=kernel.gemm(N, k, bias=True, config=LOW))
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((N, k), np.float32), rng.standard_normal(N, np.float32)
    y = multiply(kernel, module["gemm"], [rows()[:, :k]], w, bias)
    np.testing.assert_array_equal(y, float_sums(rows()[:, :k], w) + bias)


def near_the_limit(fmt, n: int, k: int, exponents: tuple[int, int], rng) -> Quantized:
    """Every finite code under scales of 2^exponents (E8M0) or of any finite byte (E4M3)."""
    codes = np.arange(1 << fmt.element.bits, dtype=np.uint8)
    codes = codes[np.isfinite(fmt.element.decode(codes))]
    drawn = rng.permuted(np.resize(codes, (n, k)), axis=1)
    low, high = (127 + e for e in exponents) if fmt.scale == "e8m0" else (1, 126)
    scales = rng.integers(low, high + 1, (n, fmt.blocks(k))).astype(np.uint8)
    rows = np.full((n, 1), 0.5, np.float32) if fmt.has_tensor_scale else None
    return Quantized(drawn, scales, rows)


@pytest.mark.parametrize(("isa", "m"), [(AVX512_BF16, 9), (AVX512_AMX, 17)], ids=["pairs", "tiles"])
@pytest.mark.parametrize("exponents", [(-41, -39), (39, 41), (-62, -58), (0, 3)])
@pytest.mark.parametrize(
    ("weight", "act"),
    [
        ("mxfp8_e5m2", "mxfp8_e5m2"),  # subnormal codes squared are the smallest products
        ("mxfp6_e3m2", "mxfp8"),
        ("mxint8", "mxfp8"),
        ("mxfp6", "mxfp8_e5m2"),
        ("mxfp8", "nvfp4"),
        ("mxfp8", "mxint6"),
    ],
)
def test_pairs_of_bfloat16_at_the_limit_of_plain_scales(weight, act, exponents, isa, m) -> None:
    if isa not in HERE:
        pytest.skip(f"no {isa.name} here")
    kernel = kernel_for(FORMATS[weight], FORMATS[act], isa)
    rng = np.random.default_rng(0)
    n, k = 48, 77
    x = near_the_limit(kernel.act, m, k, exponents, rng)
    w = near_the_limit(kernel.weight, n, k, exponents, rng)
    if w.tensor_scale is not None:
        w = Quantized(w.codes, w.scales, np.asarray(0.5, np.float32))
    config = Config(rows=4, columns=1, depth=64, chunk=8, few_columns=2, small_columns=1)
    module = compiled(isa, gemm=kernel.gemm(n, k, bias=False, config=config))
    y = multiply(kernel, module["gemm"], pair_operands(kernel, x), w)
    np.testing.assert_array_equal(y, linear_of(kernel, x, w))
