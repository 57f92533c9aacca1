"""The contract of every GEMM: blocks ascending, one FMA each, whatever the config and the threads.

Rows do not depend on one another, so the numpy reference runs at the largest M alone, and every
smaller M is its first rows; few rows, whose order of sums may be another, have a run of their own.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu import threads
from lbcompiler.targets.cpu.gemm import SMALL_M, Config
from lbcompiler.targets.cpu.isa import ISAS
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for
from tests.targets.cpu.reference import HERE, Array, compiled, linear, run

MOST = 257  # in each dimension: 256, which all tiles and panels divide, and one more
TILE = 12  # rows x columns of the largest register tile that is worth trying
MXINT8, MXFP4, NVFP4, MXFP8 = (("mxint8",) * 2, ("mxfp4",) * 2, ("nvfp4",) * 2, ("mxfp8",) * 2)
THREADS = (1, 2, 3)
TILES = Config(rows=32, columns=3, depth=64, chunk=64, few_columns=2, small_columns=1)
LOW = Config(rows=4, columns=2, depth=64, chunk=24, few_columns=2, small_columns=2)

sizes = st.one_of(st.integers(1, MOST), st.sampled_from([1, 15, 16, 17, MOST - 1, MOST]))


@st.composite
def configs(draw) -> Config:
    rows = draw(st.integers(1, TILE))
    return Config(
        rows=rows,
        columns=draw(st.integers(1, min(6, TILE // rows))),
        depth=draw(st.sampled_from([16, 32, 64, 96, 1 << 20])),
        chunk=draw(st.integers(1, 40)),
        few_columns=draw(st.integers(1, 3)),
        small_columns=draw(st.integers(1, 4)),
    )


@st.composite
def pairs(draw) -> tuple[str | None, str | None]:
    """Formats of weights and activations; activations of float weights stay in float."""
    weight = draw(st.sampled_from([None, *FORMATS]))
    return weight, None if weight is None else draw(st.sampled_from([None, *FORMATS]))


@cache
def caller(count: int) -> ThreadPoolExecutor:
    """A thread whose TVM pool has that many threads: it keeps the size of its first call."""

    def configure() -> None:
        threads.set_threads(count)

    pool = ThreadPoolExecutor(1, initializer=configure)
    pool.submit(int).result()
    threads.set_threads(None)
    return pool


def result_of(
    count: int, kernel: LinearKernel, module: object, x: Array, w: object, bias: Array | None
) -> Array:
    future: Future[Array] = caller(count).submit(run, kernel, module, x, w, bias)
    return future.result()


def both(name):
    return None if name is None else FORMATS[name]


def operands(m: int, n: int, k: int, is_plain: bool) -> tuple[Array, Array, Array]:
    """Activations, weights and a bias; some rows of either with scales whose way is another."""
    rng = np.random.default_rng([m, n, k])
    x, w = (rng.standard_normal((rows, k), np.float32) for rows in (m, n))
    if not is_plain:
        x[m // 2] *= np.float32(2.0**-70)
        w[n // 3] *= np.float32(2.0**-66)
    return x, w, rng.standard_normal(n, np.float32)


every_choice = given(
    isa=st.sampled_from(HERE),
    pair=pairs(),
    config=configs(),
    heights=st.lists(sizes, min_size=1, max_size=4),
    k=sizes,
    n=sizes,
    has_bias=st.booleans(),
    is_plain=st.booleans(),
)


@settings(deadline=None, max_examples=32)
@every_choice
@example(ISAS[-1], NVFP4, LOW, [MOST, 15, 1], MOST, MOST, True, True)
@example(HERE[0], MXFP4, LOW, [MOST, 16, 2], MOST, MOST, False, True)
@example(HERE[0], MXINT8, LOW, [MOST, 15, 4], MOST, MOST, True, False)
@example(HERE[0], MXINT8, TILES, [MOST, 129, 16], MOST, 160, True, True)
@example(HERE[0], MXFP8, LOW, [MOST, 15, 3], MOST, MOST, True, True)
def test_one_result(isa, pair, config, heights, k, n, has_bias, is_plain) -> None:
    check(isa, pair, config, heights, k, n, has_bias, is_plain)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@every_choice
def test_one_result_of_many(isa, pair, config, heights, k, n, has_bias, is_plain) -> None:
    check(isa, pair, config, heights, k, n, has_bias, is_plain)


def check(isa, pair, config, heights, k, n, has_bias, is_plain) -> None:
    kernel = kernel_for(both(pair[0]), both(pair[1]), isa)
    rule = "" if kernel.act is None else kernel.act.default_rule
    module = compiled(
        isa,
        quantize=kernel.quantize(k, rule),
        gemm=kernel.gemm(n, k, bias=has_bias, config=config),
    )
    x, weight, some = operands(max(heights), n, k, is_plain)
    w, bias = weight if kernel.weight is None else kernel.weight.quantize(weight), None
    if has_bias:
        bias = some

    @cache
    def expected(rows: int) -> Array:
        return linear(kernel, x[:rows], w, rule, bias)

    for dimension, size in (("M", max(heights)), ("K", k), ("N", n)):
        event(f"{dimension} {'at its most' if size == MOST else 'below'}")
    for m in dict.fromkeys(heights):
        for count in THREADS:
            y = result_of(count, kernel, module, x[:m], w, bias)
            most = max(heights) if m >= SMALL_M else SMALL_M - 1
            np.testing.assert_array_equal(y, expected(most)[:m])
