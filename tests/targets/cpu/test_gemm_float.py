"""Float GEMMs: bit for bit a chain of FMAs over exactly dequantized operands."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.kernels import kernel_for
from tests.targets.cpu.reference import (
    HERE,
    affine,
    any_weight,
    compiled,
    exact_values,
    float_sums,
    multiply,
)

LOW = Config(rows=1, columns=2, depth=64, chunk=8, small_columns=1)  # one tile compiles fastest
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
    """The one function serves every float activation: they arrive as code * scale in float32."""
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
