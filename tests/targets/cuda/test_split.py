"""GEMMs whose K is taken in parts, by a second launch that adds up: all three families."""

from dataclasses import replace

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.targets.cuda.layout import depths, tiles
from lbcompiler.targets.cuda.layout_native import rows_of_bytes, rows_of_scales
from tests.emulator.build import emulate
from tests.targets.cuda.reference import (
    ROUNDING,
    SMALL,
    activation_operands,
    rows_of,
    sum_tolerance,
)

N, K = 37, 600  # ten tiles of 64 k's in three parts of four, four and two; two in parts
CONFIG = replace(SMALL, tokens=32, wide_stages=2, blocks=3, few_splits=3, splits=2)
ROWS = (1, 16, 17, 32, 45)  # in three parts, in two, in one
CASES = (
    ("sm_80", "nvfp4", "nvfp4"),
    ("sm_80", "mxint8", None),
    ("sm_90a", "mxfp4", "mxfp4"),
    ("sm_120a", "nvfp4", "nvfp4"),
)


@pytest.fixture(scope="module", params=CASES, ids=str)
def built(request):
    arch, weight, act = request.param
    kernel = kernel_for(FORMATS[weight], FORMATS.get(act), arch_named(arch))
    gemm = kernel.gemm(N, K, bias=True, epilogue="relu", config=CONFIG)
    return kernel, emulate({"gemm": gemm}, arch)


def inputs_of(kernel, m):
    """(activation operands, what they stand for; W, what it stands for; bias)."""
    rng = np.random.default_rng(m)
    w = kernel.weight.quantize(rng.standard_normal((N, K)).astype(np.float32))
    x = rng.standard_normal((m, K)).astype(np.float32)
    bias = rng.standard_normal(N).astype(np.float32)
    values = kernel.weight.dequantize(w).astype(np.float64)
    if kernel.route == "exact":
        operands = activation_operands(kernel, x)
        return operands, rows_of(operands, K), w, values, bias
    q = kernel.act.quantize(x, per_row=True)
    operands = [rows_of_bytes(q.codes, kernel.pair), rows_of_scales(q.scales, kernel.pair, K)]
    operands.append(np.asarray(q.tensor_scale, np.float32))
    return operands, kernel.act.dequantize(q).astype(np.float64), w, values, bias


def run(kernel, functions, m, seed=0):
    x, _, w, _, bias = inputs_of(kernel, m)
    ((shape, _),) = kernel.scratch(N, CONFIG)
    y, parts = np.full((m, N), np.nan, np.float32), np.full(shape, np.nan, np.float32)
    functions("gemm", *x, *kernel.pack(w), bias, y, parts, seed=seed)
    return y, parts


@pytest.mark.parametrize("m", ROWS)
def test_is_the_reference_up_to_the_order_of_the_sum(built, m) -> None:
    kernel, functions = built
    _, rows, _, values, bias = inputs_of(kernel, m)
    wanted = np.maximum(rows @ values.T + bias, 0)
    one_more = 3 * ROUNDING * (np.abs(rows) @ np.abs(values).T)  # each part is added once
    y, _ = run(kernel, functions, m)
    assert (np.abs(y - wanted) <= sum_tolerance(kernel, rows, values, bias) + one_more).all()


def test_only_what_is_in_parts_leaves_parts(built) -> None:
    kernel, functions = built
    _, few = run(kernel, functions, 5)
    parts = few.reshape(3, 32, N)
    assert np.isfinite(parts[:, :5]).all()
    assert np.isnan(parts[:, 5:]).all()
    _, some = run(kernel, functions, 20)
    assert np.isfinite(some.reshape(3, 32, N)[:2, :20]).all()
    assert np.isnan(some.reshape(3, 32, N)[2]).all()
    assert np.isnan(run(kernel, functions, 45)[1]).all()


@pytest.mark.parametrize("m", [3, 25])
def test_the_same_bits_in_every_order_of_blocks_and_threads(built, m) -> None:
    kernel, functions = built
    first, _ = run(kernel, functions, m, seed=0)
    for seed in (1, 2, 3):
        np.testing.assert_array_equal(run(kernel, functions, m, seed)[0], first)


@pytest.mark.parametrize(("few", "some"), [(3, 1), (1, 2)])
def test_either_may_stay_whole(few, some) -> None:
    kernel = kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], arch_named("sm_80"))
    config = replace(CONFIG, few_splits=few, splits=some)
    functions = emulate({"gemm": kernel.gemm(N, K, bias=True, config=config)})
    ((shape, _),) = kernel.scratch(N, config)
    assert shape == (few * 16 if few > 1 else some * config.rows, N)
    for m in (4, 16, 17, 32, 33):
        x, rows, w, values, bias = inputs_of(kernel, m)
        y, parts = np.full((m, N), np.nan, np.float32), np.full(shape, np.nan, np.float32)
        functions("gemm", *x, *kernel.pack(w), bias, y, parts)
        one_more = 3 * ROUNDING * (np.abs(rows) @ np.abs(values).T)
        tolerance = sum_tolerance(kernel, rows, values, bias) + one_more
        assert (np.abs(y - (rows @ values.T + bias)) <= tolerance).all()


@pytest.mark.parametrize("n", [576, 1024, 1536, 2048])
def test_one_row_fills_an_h200(n) -> None:
    kernel = kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], arch_named("sm_90a"))
    config = kernel.default_config(n, 8192)
    assert tiles(n) * config.few_splits >= 132
    assert depths(8192) // config.few_splits >= 2 * config.few_warps  # each warp has some of it


def test_what_is_too_little_or_enough_stays_whole() -> None:
    kernel = kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], arch_named("sm_90a"))
    assert kernel.scratch(192, kernel.default_config(192, 192)) == []
    config = kernel.default_config(49152, 576)
    assert (config.few_splits, config.splits) == (1, 1)
