"""GEMMs by AMX, for any rows, odd sizes and any scales: integers have the bits of every other
kernel, other codes those of `reference.tile_sums`.
"""

import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.gemm_integer import exact_bits
from lbcompiler.targets.cpu.gemm_tiles import height_of
from lbcompiler.targets.cpu.isa import AVX512_AMX
from lbcompiler.targets.cpu.kernels import kernel_for
from tests.targets.cpu.reference import (
    HERE,
    any_weight,
    built,
    compiled,
    integer_operands,
    linear,
    linear_of,
    multiply,
    pair_operands,
    run,
)

INTEGER = [name for name, fmt in FORMATS.items() if fmt.element.integer_multiplier is not None]
MOST = 129
SMALL = Config(rows=16, columns=2, depth=64, chunk=32, few_columns=1, small_columns=1)
has_tiles = pytest.mark.skipif(AVX512_AMX not in HERE, reason="no AMX here, or none granted")
sizes = st.one_of(st.integers(1, MOST), st.sampled_from([16, 32, 48, 64, MOST]))


@st.composite
def configs(draw) -> Config:
    return Config(
        rows=draw(st.sampled_from([16, 32])),
        columns=draw(st.integers(1, 10)),
        depth=draw(st.sampled_from([16, 32, 64, 96, 1 << 20])),
        chunk=draw(st.integers(1, 100)),
        few_columns=1,
        small_columns=1,
    )


@has_tiles
@settings(deadline=None, max_examples=24)
@given(
    weight=st.sampled_from(list(FORMATS)),
    act=st.sampled_from(list(FORMATS)),
    config=configs(),
    heights=st.lists(st.one_of(st.integers(1, 33), st.integers(16, MOST)), min_size=1, max_size=4),
    k=sizes,
    n=sizes,
    is_plain=st.booleans(),
)
def test_one_result(weight, act, config, heights, k, n, is_plain) -> None:
    kernel = kernel_for(FORMATS[weight], FORMATS[act], AVX512_AMX)
    rule = kernel.act.default_rule
    module = compiled(
        AVX512_AMX,
        quantize=kernel.quantize(k, rule),
        gemm=kernel.gemm(n, k, bias=False, config=config),
    )
    rng = np.random.default_rng([n, k])
    m = max(heights)
    x, w = (rng.standard_normal((rows, k), np.float32) for rows in (m, n))
    if not is_plain:
        x[m // 2] *= np.float32(2.0**-70)
        w[n // 3] *= np.float32(2.0**-66)
    q = kernel.weight.quantize(w)
    expected = linear(kernel, x, q, rule)
    for rows in dict.fromkeys(heights):
        np.testing.assert_array_equal(run(kernel, module, x[:rows], q), expected[:rows])


@has_tiles
@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize(
    ("weight", "act"),
    [
        *zip(INTEGER, INTEGER, strict=True),
        ("mxfp4", "nvint4"),
        ("mxfp8", "mxfp8_e5m2"),
        ("mxfp8_e5m2", "mxint6"),
        ("mxfp6_e3m2", "mxfp8"),
        ("nvfp4", "mxfp8"),
        ("mxfp8", "nvfp4"),
    ],
)
def test_every_code_and_scale_byte(weight, act, is_plain) -> None:
    """Scales that are plain leave all tasks to tiles, others none where they are powers of two."""
    m, n, k = 17, 37, 77
    kernel = kernel_for(FORMATS[weight], FORMATS[act], AVX512_AMX)
    module = compiled(AVX512_AMX, gemm=kernel.gemm(n, k, bias=False, config=SMALL))
    x = np.random.default_rng(0).standard_normal((m, k)).astype(np.float32)
    x[1] = np.where(x[1] > 0, kernel.act.element.max, -kernel.act.element.max)
    if not is_plain:
        x[2, 40] = np.nan
    w, q = any_weight(kernel.weight, n, k, 0), kernel.act.quantize(x, per_row=True)
    if is_plain and kernel.weight.scale == "e8m0":
        w.scales[:] = np.random.default_rng(1).integers(127 - 40, 127 + 41, w.scales.shape)
    operands = integer_operands if kernel.is_integer else pair_operands
    y = multiply(kernel, module["gemm"], operands(kernel, q), w)
    np.testing.assert_array_equal(y, linear_of(kernel, q, w))
    assert np.isfinite(y[3:]).mean() > 0.3


@has_tiles
@pytest.mark.parametrize(
    ("activations", "weights"),
    [
        *(((low, low + 1),) * 2 for low in (-62, -63, 61, 62, -3)),
        ((-62, -61), (-40, -39)),
        ((61, 62), (39, 40)),
        ((61, 62), (40, 41)),
        ((62, 63), (39, 40)),
    ],
)
@pytest.mark.parametrize("name", ["mxint8", "mxfp4", "mxfp6"])
def test_scales_at_the_limit_of_plain_ones(name, activations, weights) -> None:
    """Largest codes under them: no step of a tile's sum may overflow, or become a denormal."""
    m, n, k = 16, 16, 64
    fmt = FORMATS[name]
    kernel = kernel_for(fmt, fmt, AVX512_AMX)
    module = compiled(AVX512_AMX, gemm=kernel.gemm(n, k, bias=False, config=SMALL))
    rng = np.random.default_rng(0)

    def drawn(rows: int, exponents: tuple[int, int], raised: int = 0):
        q = any_weight(fmt, rows, k, 1)
        q.codes[:] = fmt.element.encode(rng.choice([fmt.element.max, -fmt.element.max], (rows, k)))
        q.codes[::2] = fmt.element.encode(np.float32(1 / (fmt.element.integer_multiplier or 1)))
        low, high = (127 + e + raised for e in exponents)
        q.scales[:] = rng.integers(low, high + 1, q.scales.shape)
        return q

    divided = int(fmt.element.integer_multiplier or 1) ** 2  # what activations' scales are
    w, q = drawn(n, weights), drawn(m, activations, divided.bit_length() - 1)
    y = multiply(kernel, module["gemm"], integer_operands(kernel, q), w)
    np.testing.assert_array_equal(y, linear_of(kernel, q, w))


@pytest.mark.parametrize("weight", INTEGER)
@pytest.mark.parametrize("act", INTEGER)
def test_sums_over_a_block_are_exact_in_float32(weight, act) -> None:
    """Of every pair there is; the largest product over a block is 16 or 32 of one."""
    assert kernel_for(FORMATS[weight], FORMATS[act], AVX512_AMX).takes_tiles(16)
    assert exact_bits(FORMATS["mxint8"], FORMATS["mxint8"]) == (32 * 127 * 127).bit_length()


def test_a_block_that_is_no_tile_has_none() -> None:
    wide = replace(FORMATS["mxint8"], block=64)
    assert not kernel_for(wide, wide, AVX512_AMX).takes_tiles(128)
    assert not kernel_for(replace(FORMATS["mxfp8"], block=64), wide, AVX512_AMX).takes_tiles(128)


@pytest.mark.parametrize("name", ["mxint8", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("rows", [16, 32])
def test_sums_stay_in_tiles(name, rows) -> None:
    """Nothing but tiles is loaded between the products of a panel's blocks, and nothing stored."""
    kernel = kernel_for(FORMATS[name], FORMATS[name], AVX512_AMX)
    config = Config(rows, columns=4, depth=512, chunk=64, few_columns=1, small_columns=1)
    code = built(AVX512_AMX, gemm=kernel.gemm(64, 1024, bias=False, config=config))
    lines = code.mod.inspect_source("asm").splitlines()
    at = [i for i, line in enumerate(lines) if "tdpbf16ps" in line]
    assert any("tilerelease" in line for line in lines)
    stored = sum("tilestored" in line for line in lines)
    assert len(at) >= 4 * stored  # each sum once for all of a panel's blocks
    steps = [lines[a + 1 : b] for a, b in pairwise(at)]
    idle = [s for s in steps if not any("zmm" in line or "tilestored" in line for line in s)]
    assert len(idle) >= len(steps) - 2 * (rows // 16)  # but where a register tile ends


@pytest.mark.parametrize(("rows", "height"), [(1, 16), (16, 16), (17, 32), (32, 32), (99, 32)])
def test_a_config_of_any_rows_is_a_tile_of_16_or_32(rows, height) -> None:
    assert height_of(rows) == height


def test_a_config_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="has 0 rows"):
        height_of(0)


@has_tiles
def test_a_system_that_refuses_tiles_is_named() -> None:
    """A seccomp filter in a process of its own answers the request with EPERM."""
    program = """
        import ctypes, struct

        code = [(0x20, 0, 0, 0), (0x15, 0, 1, 158), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
        held = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        filter = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(held))
        libc = ctypes.CDLL(None)
        assert libc.prctl(38, 1, 0, 0, 0) == 0
        assert libc.prctl(22, 2, filter, 0, 0) == 0

        import numpy as np
        from lbcompiler.formats import MXINT8
        from lbcompiler.targets.cpu import isa
        from lbcompiler.targets.cpu.kernels import kernel_for
        from tests.targets.cpu.reference import compiled, linear, run

        assert isa.detect() is isa.AVX512_BF16
        kernel = kernel_for(MXINT8, MXINT8, isa.AVX512_AMX)
        module = compiled(
            kernel.isa,
            quantize=kernel.quantize(32, "even"),
            gemm=kernel.gemm(16, 32, bias=False),
        )
        x = np.ones((16, 32), np.float32)
        w = MXINT8.quantize(x)
        np.testing.assert_array_equal(run(kernel, module, x[:2], w), linear(kernel, x[:2], w))
        run(kernel, module, x, w)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "refuses AMX tiles" in done.stderr
    assert "cpu:avx512_vnni" in done.stderr
