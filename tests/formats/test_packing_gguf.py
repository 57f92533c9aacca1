"""GGUF blocks: gguf-py reads every code under every finite scale as we do; and the way back."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, BlockFormat, Quantized
from lbcompiler.formats.packing_gguf import pack_gguf, unpack_gguf

patient = settings(max_examples=40, deadline=None)  # a loaded machine is no failure

MXFP4, NVFP4 = FORMATS["mxfp4"], FORMATS["nvfp4"]
TYPES = {MXFP4: gguf.GGMLQuantizationType.MXFP4, NVFP4: gguf.GGMLQuantizationType.NVFP4}
BYTES = {MXFP4: (17, 32), NVFP4: (36, 64)}
both = pytest.mark.parametrize("fmt", TYPES, ids=lambda fmt: fmt.name)
ONE = np.ones((), np.float32)


def every_code_under_every_scale(fmt: BlockFormat, scales: range) -> Quantized:
    """(scales, 64) codes that run through all sixteen, under one scale byte a row."""
    codes = np.resize(np.arange(16, dtype=np.uint8), (len(scales), 64))
    spread = np.repeat(np.array(scales, np.uint8)[:, None], 64 // fmt.block, axis=1)
    return Quantized(codes, spread, ONE if fmt.has_tensor_scale else None)


@both
def test_sizes(fmt: BlockFormat) -> None:
    size, width = BYTES[fmt]
    packed = pack_gguf(fmt.quantize(np.ones((3, 5 * width), np.float32)), fmt)
    assert packed.shape == (3, 5 * size)
    assert gguf.GGML_QUANT_SIZES[TYPES[fmt]] == (width, size)


@both
def test_gguf_reads_every_code_under_every_scale(fmt: BlockFormat) -> None:
    q = every_code_under_every_scale(fmt, range(255) if fmt == MXFP4 else range(0x7F))
    with np.errstate(over="ignore"):  # 6 * 2^127
        read = dequantize(pack_gguf(q, fmt), TYPES[fmt])
    expected = fmt.dequantize(q)
    np.testing.assert_array_equal(read, expected)
    nonzero = expected != 0  # llama.cpp has integers times a scale, so no -0
    np.testing.assert_array_equal(np.signbit(read[nonzero]), np.signbit(expected[nonzero]))


@both
def test_gguf_reads_quantized_data(fmt: BlockFormat) -> None:
    x = np.random.default_rng(1).standard_normal((7, 320)).astype(np.float32)
    q = fmt.quantize(x)
    read = dequantize(pack_gguf(q, fmt), TYPES[fmt])
    scaled = read if q.tensor_scale is None else read * q.tensor_scale
    np.testing.assert_array_equal(scaled, fmt.dequantize(q))


def test_bytes_of_a_block_are_halves_not_neighbours() -> None:
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 0], codes[0, 16], codes[0, 1] = 1, 2, 3
    packed = pack_gguf(Quantized(codes, np.array([[127]], np.uint8)), MXFP4)
    assert packed[0, :3].tolist() == [127, 0x21, 0x03]


@both
@patient
@given(data=st.data())
def test_packing_inverts_unpacking(fmt: BlockFormat, data: st.DataObject) -> None:
    size, _ = BYTES[fmt]
    count = data.draw(st.integers(0, 3))
    packed = data.draw(arrays(np.uint8, (2, count * size), elements=st.integers(0, 126)))
    np.testing.assert_array_equal(pack_gguf(unpack_gguf(packed, fmt), fmt), packed)


@both
@patient
@given(seed=st.integers(0, 2**32 - 1), blocks=st.integers(0, 3))
def test_unpacking_inverts_packing(fmt: BlockFormat, seed: int, blocks: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 3, blocks * 64)).astype(np.float32)
    q = fmt.quantize(x)
    back = unpack_gguf(pack_gguf(q, fmt), fmt, q.tensor_scale)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scales, q.scales)
    assert back.tensor_scale is q.tensor_scale


def test_without_a_scale_tensor_the_tensor_scale_is_one() -> None:
    assert unpack_gguf(np.zeros((1, 36), np.uint8), NVFP4).tensor_scale == 1
    assert unpack_gguf(np.zeros((1, 17), np.uint8), MXFP4).tensor_scale is None


@both
def test_short_blocks_are_refused(fmt: BlockFormat) -> None:
    size, width = BYTES[fmt]
    with pytest.raises(ConfigError, match="leaves a short one"):
        pack_gguf(fmt.quantize(np.ones((2, width + 16), np.float32)), fmt)
    with pytest.raises(ConfigError, match="cut short"):
        unpack_gguf(np.zeros((2, size + 1), np.uint8), fmt)


@both
def test_a_nan_scale_is_refused(fmt: BlockFormat) -> None:
    x = np.ones((2, 64), np.float32)
    x[1, 2] = np.nan
    with pytest.raises(ConfigError, match="no NaN scale"):
        pack_gguf(fmt.quantize(x), fmt)


def test_other_formats_are_refused() -> None:
    fmt = FORMATS["mxint8"]
    with pytest.raises(ConfigError, match="no blocks of mxint8; it has mxfp4, nvfp4"):
        pack_gguf(fmt.quantize(np.ones((1, 32), np.float32)), fmt)
