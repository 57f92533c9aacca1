"""Checkpoint layouts: the arithmetic of their readers on our tensors, and the way back."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, BlockFormat, Quantized
from lbcompiler.formats.packing_checkpoints import (
    COMPRESSED_TENSORS,
    from_compressed_tensors,
    from_modelopt,
    to_compressed_tensors,
    to_modelopt,
)

patient = settings(max_examples=30, deadline=None)  # a loaded machine is no failure

NVFP4 = FORMATS["nvfp4"]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
known = pytest.mark.parametrize("fmt", COMPRESSED_TENSORS, ids=lambda fmt: fmt.name)
float32_bits = st.integers(0x00800000, 0x7E000000)  # normal, and so is the reciprocal


def weight(n: int = 6, k: int = 128) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, k)).astype(np.float32) * np.float32(0.03)


def unpacked_fp4(packed: np.ndarray) -> np.ndarray:
    """As vLLM and compressed-tensors unpack: low nibble first, sign in bit 3."""
    nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
    return np.where(nibbles & 8, -E2M1[nibbles & 7], E2M1[nibbles & 7])


def assert_same_bytes(a: Quantized, b: Quantized) -> None:
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scales, b.scales)


@known
def test_compressed_tensors_names_shapes_and_dtypes(fmt: BlockFormat) -> None:
    tensors = to_compressed_tensors(fmt.quantize(weight()), fmt)
    facts = {name: (array.shape, str(array.dtype)) for name, array in tensors.items()}
    expected: dict[str, dict[str, object]] = {
        "nvfp4": {
            "weight_packed": ((6, 64), "uint8"),
            "weight_scale": ((6, 8), "float8_e4m3fn"),
            "weight_global_scale": ((1,), "float32"),
        },
        "mxfp4": {"weight_packed": ((6, 64), "uint8"), "weight_scale": ((6, 4), "uint8")},
        "mxfp6": {"weight_packed": ((6, 96), "uint8"), "weight_scale": ((6, 4), "uint8")},
        "mxfp8": {"weight": ((6, 128), "float8_e4m3fn"), "weight_scale": ((6, 4), "uint8")},
    }
    assert facts == expected[fmt.name]


@known
def test_compressed_tensors_comes_back(fmt: BlockFormat) -> None:
    q = fmt.quantize(weight())
    back = from_compressed_tensors(to_compressed_tensors(q, fmt), fmt)
    assert_same_bytes(back, q)
    if q.tensor_scale is not None:
        assert back.tensor_scale is not None
        assert back.tensor_scale.shape == ()
        assert abs(back.tensor_scale - q.tensor_scale) <= np.spacing(q.tensor_scale)


def test_compressed_tensors_divides_by_its_global_scale() -> None:
    w = weight()
    tensors = to_compressed_tensors(NVFP4.quantize(w), NVFP4)
    divisor = tensors["weight_global_scale"]
    assert divisor == pytest.approx(2688 / np.abs(w).max(), rel=2**-22)
    scale = tensors["weight_scale"].astype(np.float32) / divisor
    values = unpacked_fp4(tensors["weight_packed"]) * np.repeat(scale, 16, axis=1)
    np.testing.assert_allclose(values, NVFP4.dequantize(NVFP4.quantize(w)), rtol=3 * 2**-23)


def test_mxfp4_of_compressed_tensors_is_a_byte_exponent() -> None:
    fmt = FORMATS["mxfp4"]
    q = fmt.quantize(weight())
    tensors = to_compressed_tensors(q, fmt)
    scale = 2.0 ** (tensors["weight_scale"].astype(np.int32) - 127)
    values = unpacked_fp4(tensors["weight_packed"]) * np.repeat(scale, 32, axis=1)
    np.testing.assert_array_equal(values, fmt.dequantize(q))


@patient
@given(st.lists(float32_bits, min_size=1, max_size=40))
def test_a_tensor_scale_read_from_a_divisor_is_stable(bits: list[int]) -> None:
    for divisor in np.array(bits, np.uint32).view(np.float32):
        tensors = to_compressed_tensors(NVFP4.quantize(weight(1, 16)), NVFP4)
        tensors["weight_global_scale"] = divisor.reshape(1)
        q = from_compressed_tensors(tensors, NVFP4)
        again = from_compressed_tensors(to_compressed_tensors(q, NVFP4), NVFP4)
        assert again.tensor_scale == q.tensor_scale


def test_modelopt_names_shapes_and_dtypes() -> None:
    tensors = to_modelopt(NVFP4.quantize(weight()))
    assert {name: (array.shape, str(array.dtype)) for name, array in tensors.items()} == {
        "weight": ((6, 64), "uint8"),
        "weight_scale": ((6, 8), "float8_e4m3fn"),
        "weight_scale_2": ((), "float32"),
    }


def test_modelopt_multiplies_by_its_second_scale() -> None:
    w = weight()
    tensors = to_modelopt(NVFP4.quantize(w))
    assert tensors["weight_scale_2"] == np.abs(w).max() / np.float32(2688)
    scale = tensors["weight_scale"].astype(np.float32) * tensors["weight_scale_2"]
    values = unpacked_fp4(tensors["weight"]) * np.repeat(scale, 16, axis=1)
    np.testing.assert_allclose(values, NVFP4.dequantize(NVFP4.quantize(w)), rtol=2**-22)


@patient
@given(float32_bits)
def test_modelopt_comes_back_exactly(bits: int) -> None:
    q = NVFP4.quantize(weight(2, 32))
    q = Quantized(q.codes, q.scales, np.array(bits, np.uint32).view(np.float32))
    back = from_modelopt(to_modelopt(q))
    assert_same_bytes(back, q)
    assert back.tensor_scale == q.tensor_scale


def test_the_two_layouts_agree_on_the_bytes() -> None:
    q = NVFP4.quantize(weight())
    ours, theirs = to_compressed_tensors(q, NVFP4), to_modelopt(q)
    np.testing.assert_array_equal(ours["weight_packed"], theirs["weight"])
    np.testing.assert_array_equal(
        ours["weight_scale"].view(np.uint8), theirs["weight_scale"].view(np.uint8)
    )


@known
@pytest.mark.parametrize("shape", [(3, 40), (64,)])
def test_a_short_block_or_a_vector_is_refused(fmt: BlockFormat, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="whole blocks"):
        to_compressed_tensors(fmt.quantize(np.ones(shape, np.float32)), fmt)


def test_row_scales_are_refused() -> None:
    q = NVFP4.quantize(weight(), per_row=True)
    with pytest.raises(ConfigError, match="per_row=False"):
        to_compressed_tensors(q, NVFP4)


def test_unknown_formats_and_missing_tensors_are_refused() -> None:
    fmt = FORMATS["mxint8"]
    with pytest.raises(ConfigError, match="no mxint8; it has nvfp4"):
        to_compressed_tensors(fmt.quantize(weight()), fmt)
    with pytest.raises(ConfigError, match="no mxint8"):
        from_compressed_tensors({}, fmt)
    with pytest.raises(ConfigError, match="MX format"):
        to_modelopt(FORMATS["mxfp4"].quantize(weight()))
    with pytest.raises(ConfigError, match="lacks weight_scale, weight_scale_2; it has weight"):
        from_modelopt({"weight": np.zeros((1, 8), np.uint8)})


def test_scales_may_be_read_as_plain_bytes() -> None:
    """Some safetensors readers give float8 tensors as uint8."""
    q = NVFP4.quantize(weight())
    tensors = to_modelopt(q)
    assert tensors["weight_scale"].dtype == ml_dtypes.float8_e4m3fn
    tensors["weight_scale"] = tensors["weight_scale"].view(np.uint8)
    assert_same_bytes(from_modelopt(tensors), q)


@pytest.mark.parametrize("divisor", [0.0, np.inf, np.nan, -1.0])
def test_a_divisor_that_cannot_divide_is_refused(divisor: float) -> None:
    tensors = to_compressed_tensors(NVFP4.quantize(weight()), NVFP4)
    tensors["weight_global_scale"] = np.float32([divisor])
    with pytest.raises(ConfigError, match="weight_global_scale divides"):
        from_compressed_tensors(tensors, NVFP4)
