"""Packing: bytes known from elsewhere, and inverses for every length."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper, numpy_helper

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.formats.packing import (
    from_ocp_mxint8,
    pack_codes,
    packed_bytes,
    swizzle_scales,
    to_ocp_mxint8,
    unpack_codes,
    unswizzle_scales,
)

patient = settings(max_examples=50, deadline=None)  # a loaded machine is no failure

ONNX_TYPES = {
    "mxint4": TensorProto.INT4,
    "mxfp4": TensorProto.FLOAT4E2M1,
    "mxfp6": TensorProto.FLOAT6E2M3,
    "mxfp6_e3m2": TensorProto.FLOAT6E3M2,
    "mxfp8": TensorProto.FLOAT8E4M3FN,
    "mxfp8_e5m2": TensorProto.FLOAT8E5M2,
    "mxint8": TensorProto.INT8,
}


def codes_of(bits: int) -> st.SearchStrategy[np.ndarray]:
    shapes = array_shapes(max_dims=3, min_side=0, max_side=9)
    return arrays(np.uint8, shapes, elements=st.integers(0, 2**bits - 1))


def test_nibbles_low_first_and_odd_counts_padded_with_zero() -> None:
    packed = pack_codes(np.array([[0x2, 0x7, 0xF]], np.uint8), 4)
    assert packed.tolist() == [[0x72, 0x0F]]


def test_four_six_bit_codes_in_three_bytes_lowest_bit_first() -> None:
    packed = pack_codes(np.array([0b000001, 0b100010, 0b110011, 0b111000], np.uint8), 6)
    assert packed.tolist() == [0b10_000001, 0b0011_1000, 0b111000_11]


@pytest.mark.parametrize("bits", [4, 6, 8])
@patient
@given(data=st.data())
def test_unpacking_inverts_packing(bits: int, data: st.DataObject) -> None:
    codes = data.draw(codes_of(bits))
    k = codes.shape[-1]
    packed = pack_codes(codes, bits)
    assert packed.shape == (*codes.shape[:-1], packed_bytes(k, bits))
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack_codes(packed, bits, k), codes)


@pytest.mark.parametrize("bits", [4, 6, 8])
@patient
@given(data=st.data())
def test_packing_inverts_unpacking_of_whole_groups(bits: int, data: st.DataObject) -> None:
    packed = data.draw(arrays(np.uint8, st.tuples(st.integers(0, 4), st.sampled_from([0, 3, 12]))))
    k = packed.shape[-1] * 8 // bits
    np.testing.assert_array_equal(pack_codes(unpack_codes(packed, bits, k), bits), packed)


@pytest.mark.parametrize("name", ONNX_TYPES)
@pytest.mark.parametrize("shape", [(3, 7), (1,), (2, 5), (4, 4), (3,), (2,)])
def test_onnx_reads_our_bytes(name: str, shape: tuple[int, ...]) -> None:
    """ONNX packs the flattened tensor, so a flat array gives its raw_data."""
    element = FORMATS[name].element
    random = np.random.default_rng(len(shape))
    codes = random.integers(0, 2**element.bits, shape, dtype=np.uint8)
    raw = pack_codes(codes.reshape(-1), element.bits).tobytes()
    tensor = helper.make_tensor("w", ONNX_TYPES[name], shape, raw, raw=True)
    read = numpy_helper.to_array(tensor)
    np.testing.assert_array_equal(read.astype(np.float32), element.decode(codes))
    onnx.checker.check_tensor(tensor)


def test_a_wrong_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 codes of 4 bits take 3 bytes"):
        unpack_codes(np.zeros((2, 2), np.uint8), 4, 5)


@pytest.mark.parametrize("call", [pack_codes, lambda x, bits: unpack_codes(x, bits, 3)])
def test_other_widths_are_refused(call) -> None:
    with pytest.raises(ConfigError, match="4, 6 or 8"):
        call(np.zeros(3, np.uint8), 5)


def blackwell_offset(m: int, k: int, columns: int) -> int:
    """PTX ISA: tiles of 128 rows x 4 scales; 32 lines of 16 bytes, four quarters side by side."""
    tile = (m // 128) * -(-columns // 4) + k // 4
    return tile * 512 + (m % 32) * 16 + (m % 128) // 32 * 4 + k % 4


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (200, 10), (129, 5), (40, 3), (256, 8)])
def test_every_scale_lies_where_blackwell_reads_it_and_padding_is_zero(
    shape: tuple[int, int],
) -> None:
    scales = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    packed = swizzle_scales(scales)
    m, columns = shape
    expected = np.zeros(-(-m // 128) * -(-columns // 4) * 512, np.uint8)
    for i, k in np.ndindex(shape):
        expected[blackwell_offset(i, k, columns)] = scales[i, k]
    np.testing.assert_array_equal(packed, expected)


@patient
@given(
    arrays(
        np.uint8, st.tuples(st.integers(0, 300), st.integers(0, 9)), elements=st.integers(0, 255)
    )
)
def test_unswizzling_inverts_swizzling(scales: np.ndarray) -> None:
    np.testing.assert_array_equal(unswizzle_scales(swizzle_scales(scales), *scales.shape), scales)


def test_swizzling_inverts_unswizzling_of_whole_tiles() -> None:
    packed = np.random.default_rng(0).integers(0, 256, 6 * 512, dtype=np.uint8)
    np.testing.assert_array_equal(swizzle_scales(unswizzle_scales(packed, 256, 12)), packed)


def test_a_cut_scale_layout_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes 1024 bytes, not 512"):
        unswizzle_scales(np.zeros(512, np.uint8), 129, 4)


MXINT8 = FORMATS["mxint8"]


def ocp_mxint8_values(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """OCP MX v1.0, 5.3.4: two's complement with six fraction bits, times 2^(b - 127)."""
    scale = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    values = codes.view(np.int8).astype(np.float64) / 64
    return values * np.repeat(scale, 32, axis=-1)[..., : codes.shape[-1]]


@pytest.mark.parametrize("k", [32, 96, 40])
def test_ocp_mxint8_has_the_same_values_and_comes_back(k: int) -> None:
    x = np.random.default_rng(k).standard_normal((4, k)).astype(np.float32)
    x[1] = 0
    x[2] *= 1e-30
    x[3, 0] = np.nan
    q = MXINT8.quantize(x)
    codes, scales = to_ocp_mxint8(q)
    np.testing.assert_array_equal(ocp_mxint8_values(codes, scales), MXINT8.dequantize(q))
    back = from_ocp_mxint8(codes, scales)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scales, q.scales)


def test_every_ocp_mxint8_byte() -> None:
    scales = np.arange(256, dtype=np.uint8)[:, None]
    codes = np.ones((256, 32), np.uint8)
    inside = np.r_[6:256]
    q = from_ocp_mxint8(codes[inside], scales[inside])
    np.testing.assert_array_equal(
        MXINT8.dequantize(q), ocp_mxint8_values(codes[inside], scales[inside])
    )
    np.testing.assert_array_equal(to_ocp_mxint8(q)[1], scales[inside])
    for byte in range(6):
        with pytest.raises(ConfigError, match="2\\^-121"):
            from_ocp_mxint8(codes[:1], scales[byte : byte + 1])
        zeros = from_ocp_mxint8(np.zeros((1, 32), np.uint8), scales[byte : byte + 1])
        assert not MXINT8.dequantize(zeros).any()


def test_the_end_of_float32_has_no_ocp_mxint8_byte() -> None:
    with pytest.raises(ConfigError, match="scale the tensor down"):
        to_ocp_mxint8(MXINT8.quantize(np.full((1, 32), np.finfo(np.float32).max)))
    at_the_end = np.full((1, 32), np.ldexp(np.float32(127), 121))
    assert to_ocp_mxint8(MXINT8.quantize(at_the_end))[1] == 254
