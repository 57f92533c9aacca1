"""The loop nest: one result whatever the tiles, the chunk, the shape and the threads."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu import threads
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.kernels import kernel_for
from tests.targets.cpu.reference import HERE, compiled, linear, run

PAIRS = [("mxint8", "mxint8"), ("nvfp4", "mxint8"), ("mxfp6", "nvint4"), ("mxfp4", "mxfp8")]
PAIRS += [("mxfp8", "nvfp4"), ("mxfp6_e3m2", "mxfp8_e5m2"), ("mxint4", None), (None, None)]


@st.composite
def configs(draw) -> Config:
    rows = draw(st.integers(1, 6))
    return Config(
        rows=rows,
        columns=draw(st.integers(1, 3 if rows < 5 else 2)),
        depth=draw(st.sampled_from([16, 32, 64, 96, 1 << 20])),
        chunk=draw(st.integers(1, 40)),
        small_columns=draw(st.integers(1, 4)),
    )


@st.composite
def shapes(draw) -> tuple[list[int], int, int]:
    """(several M, K, N): up to 40, one of the three up to 257."""
    limits = [40, 40, 40]
    limits[draw(st.integers(0, 2))] = 257
    heights = draw(st.lists(st.integers(1, limits[0]), min_size=1, max_size=3))
    return heights, draw(st.integers(1, limits[1])), draw(st.integers(1, limits[2]))


def both(name):
    return None if name is None else FORMATS[name]


@settings(deadline=None, max_examples=24)
@given(
    st.sampled_from(HERE),
    st.sampled_from(PAIRS),
    configs(),
    shapes(),
    st.booleans(),
)
def test_any_shape_and_any_config(isa, pair, config, shape, has_bias) -> None:
    heights, k, n = shape
    kernel = kernel_for(both(pair[0]), both(pair[1]), isa)
    rule = "" if kernel.act is None else kernel.act.default_rule
    gemm = kernel.gemm(n, k, bias=has_bias, config=config)
    module = compiled(isa, quantize=kernel.quantize(k, rule), gemm=gemm)
    rng = np.random.default_rng(k * 1000 + n)
    w = rng.standard_normal((n, k), np.float32)
    bias = rng.standard_normal(n, np.float32) if has_bias else None
    quantized = w if kernel.weight is None else kernel.weight.quantize(w)
    for m in heights:
        x = rng.standard_normal((m, k), np.float32)
        y = run(kernel, module, x, quantized, bias)
        np.testing.assert_array_equal(y, linear(kernel, x, quantized, rule, bias))


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


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    kernel = kernel_for(FORMATS["mxfp4"], FORMATS["mxfp4"], detect())
    module = compiled(
        detect(), quantize=kernel.quantize(64, "rceil"), gemm=kernel.gemm(200, 64, bias=False)
    )
    rng = np.random.default_rng(0)
    w = kernel.weight.quantize(rng.standard_normal((200, 64)))
    x = rng.standard_normal((130, 64), np.float32)
    results: list[np.ndarray] = []

    def with_threads(count: int) -> None:
        threads.set_threads(count)
        results.append(run(kernel, module, x, w))

    for count in (1, 2):  # a pool belongs to the thread that calls, and keeps its first size
        caller = threading.Thread(target=with_threads, args=(count,))
        caller.start()
        caller.join()
    threads.set_threads(None)
    np.testing.assert_array_equal(results[0], results[1])


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
    config = Config(rows=4, columns=1, depth=64, chunk=8, small_columns=1)
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
