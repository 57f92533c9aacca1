"""The loop nest at the edges of its tiles, its activations, and scales that are not plain."""

import numpy as np
import pytest
from scipy.special import erf
from tvm import tirx

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.gemm import Config, row_tiles_of_chunk
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.kernels import kernel_for
from tests.targets.cpu.reference import HERE, compiled, linear, run


@pytest.mark.parametrize("most", [1, 2, 4, 7])
@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 4, 8])
def test_no_chunk_is_empty_or_too_large(most, wanted) -> None:
    for row_tiles in range(40):
        height = int(row_tiles_of_chunk(tirx.const(row_tiles, "int64"), most, wanted))
        chunks = -(-row_tiles // height)
        assert 1 <= height <= most
        assert row_tiles == 0 or (chunks - 1) * height < row_tiles
        assert chunks >= min(row_tiles, wanted) / 2


@pytest.mark.parametrize("isa", HERE, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("weight", "act"), [("nvfp4", "nvfp4"), ("mxfp8", "mxfp8")])
def test_the_default_tiles_at_their_edges(isa, weight, act) -> None:
    """No row, one, one less than a tile, a tile, one more, several chunks."""
    kernel = kernel_for(FORMATS[weight], FORMATS[act], isa)
    n, k = 83, 48
    module = compiled(
        isa, quantize=kernel.quantize(k, kernel.act.default_rule), gemm=kernel.gemm(n, k, bias=True)
    )
    rng = np.random.default_rng(0)
    w = kernel.weight.quantize(rng.standard_normal((n, k)))
    bias = rng.standard_normal(n, np.float32)
    for m in (0, 1, 3, 4, 5, 11, 12, 13, 100, 250):
        x = rng.standard_normal((m, k), np.float32)
        np.testing.assert_array_equal(
            run(kernel, module, x, w, bias), linear(kernel, x, w, bias=bias)
        )


@pytest.mark.parametrize("epilogue", ["relu", "gelu"])
def test_the_activation_comes_last(epilogue) -> None:
    kernel = kernel_for(FORMATS["nvfp4"], None, detect())
    module = compiled(detect(), gemm=kernel.gemm(21, 32, bias=True, epilogue=epilogue))
    rng = np.random.default_rng(0)
    w, bias = kernel.weight.quantize(rng.standard_normal((21, 32))), rng.standard_normal(21)
    x = rng.standard_normal((14, 32), np.float32)
    before = linear(kernel, x, w, bias=bias.astype(np.float32)).astype(np.float64)
    half = before / 2
    after = np.maximum(before, 0) if epilogue == "relu" else half + half * erf(before / 2**0.5)
    y = run(kernel, module, x, w, bias.astype(np.float32))
    np.testing.assert_allclose(y, after, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", HERE, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("weight", "act"), [("mxint8", "mxfp4"), ("mxfp8", "mxfp8"), ("mxfp8_e5m2", "nvfp4")]
)
def test_scales_of_any_size(isa, weight, act) -> None:
    """Whole tiles of rows and columns, some with scales that are not plain, zero or NaN."""
    kernel = kernel_for(FORMATS[weight], FORMATS[act], isa)
    m, n, k = 40, 112, 160
    config = Config(rows=4, columns=1, depth=64, chunk=8, few_columns=2, small_columns=1)
    module = compiled(
        isa,
        quantize=kernel.quantize(k, kernel.act.default_rule),
        gemm=kernel.gemm(n, k, bias=False, config=config),
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[3, 40], x[10, :32], x[20:22, 64:] = np.nan, 0, 0
    x[13] *= np.float32(2.0**-70)
    x[25] *= np.float32(2.0**-127)
    x[37, 96:] *= np.float32(2.0**100)
    w = rng.standard_normal((n, k)).astype(np.float32)
    w[5, 32:64], w[40, :] = 0, 0
    w[33] *= np.float32(2.0**-65)
    w[60, :32] *= np.float32(2.0**90)
    w[100] *= np.float32(2.0**-120)
    quantized = kernel.weight.quantize(w)
    y = run(kernel, module, x, quantized)
    np.testing.assert_array_equal(y, linear(kernel, x, quantized))
    assert np.isfinite(y).mean() > 0.9
