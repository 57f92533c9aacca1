"""Quantization as a whole: corners with a defined result, error bounds, idempotence, memory."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, BlockFormat, Quantized, decode_scales
from lbcompiler.formats import block_format as module

patient = settings(max_examples=25, deadline=None)  # a loaded machine is no failure

RULED = [(fmt, rule) for fmt in FORMATS.values() for rule in fmt.rules]
every_rule = pytest.mark.parametrize(
    ("fmt", "rule"), RULED, ids=[f"{fmt.name}-{rule}" for fmt, rule in RULED]
)
every_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
every_nv = pytest.mark.parametrize(
    "fmt", [f for f in FORMATS.values() if f.has_tensor_scale], ids=lambda fmt: fmt.name
)

MODERATE = arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32))


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(a: Quantized, b: Quantized) -> None:
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.scales, b.scales)
    assert (a.tensor_scale is None) == (b.tensor_scale is None)
    if a.tensor_scale is not None and b.tensor_scale is not None:
        np.testing.assert_array_equal(a.tensor_scale, b.tensor_scale)


@every_rule
def test_shapes_and_dtypes(fmt: BlockFormat, rule: str) -> None:
    q = fmt.quantize(gaussian(2, 3, 70), rule)
    assert (q.codes.shape, q.codes.dtype) == ((2, 3, 70), np.uint8)
    assert (q.scales.shape, q.scales.dtype) == ((2, 3, fmt.blocks(70)), np.uint8)
    assert (q.codes < 2**fmt.element.bits).all()
    if q.tensor_scale is None:
        assert not fmt.has_tensor_scale
    else:
        assert (q.tensor_scale.shape, q.tensor_scale.dtype) == ((), np.float32)
    x = fmt.dequantize(q)
    assert (x.shape, x.dtype) == ((2, 3, 70), np.float32)


@every_format
def test_value_is_code_times_scale_times_tensor_scale_from_left_to_right(fmt: BlockFormat) -> None:
    q = fmt.quantize(gaussian(4, 96))
    expected = fmt.element.decode(q.codes) * np.repeat(
        decode_scales(q.scales, fmt.scale), fmt.block, axis=1
    )
    if q.tensor_scale is not None:
        expected = expected * q.tensor_scale
    np.testing.assert_array_equal(fmt.dequantize(q), expected)


@every_format
def test_every_code_times_every_scale(fmt: BlockFormat) -> None:
    """Decoding is defined for all bytes, also those that `quantize` never writes."""
    codes = np.resize(np.arange(2**fmt.element.bits, dtype=np.uint8), (256, 256))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256 // fmt.block, axis=1)
    g = np.float32(0.37).reshape(()) if fmt.has_tensor_scale else None
    with np.errstate(over="ignore", invalid="ignore"):
        value = fmt.element.decode(codes) * decode_scales(scales[:, :1], fmt.scale)
        expected = value if g is None else value * g
        np.testing.assert_array_equal(fmt.dequantize(Quantized(codes, scales, g)), expected)


@every_rule
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_block_of_zeros_has_zero_codes_under_the_smallest_scale(
    fmt: BlockFormat, rule: str, zero: float
) -> None:
    x = gaussian(2, 3 * fmt.block)
    x[:, fmt.block : 2 * fmt.block] = zero
    q = fmt.quantize(x, rule)
    assert not q.codes[:, fmt.block : 2 * fmt.block].any()
    assert (q.scales[:, 1] == (1 if fmt.has_tensor_scale else 0)).all()
    assert not fmt.dequantize(q)[:, fmt.block : 2 * fmt.block].any()


@every_rule
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_nan_and_inf_spoil_their_block_and_no_other(
    fmt: BlockFormat, rule: str, bad: float
) -> None:
    clean = gaussian(2, 4 * fmt.block)
    clean[0, fmt.block + 3] = 0
    x = clean.copy()
    x[0, fmt.block + 3] = bad
    q, expected = fmt.quantize(x, rule), fmt.quantize(clean, rule)
    assert q.scales[0, 1] == (0x7F if fmt.scale == "e4m3" else 0xFF)
    assert not q.codes[0, fmt.block : 2 * fmt.block].any()
    assert np.isnan(fmt.dequantize(q)[0, fmt.block : 2 * fmt.block]).all()
    others = np.ones((2, 4), bool)
    others[0, 1] = False
    np.testing.assert_array_equal(q.scales[others], expected.scales[others])
    kept = np.repeat(others, fmt.block, axis=1)
    np.testing.assert_array_equal(q.codes[kept], expected.codes[kept])


@every_nv
def test_the_tensor_scale_sees_the_finite_elements_of_a_spoiled_block(fmt: BlockFormat) -> None:
    x = np.ones((1, 32), np.float32)
    x[0, :2] = np.nan, 448 * fmt.element.max
    assert fmt.quantize(x).tensor_scale == 1


@every_rule
@pytest.mark.parametrize("k", [1, 15, 16, 17, 31, 33, 100])
def test_a_short_last_block_is_one_padded_with_zeros(fmt: BlockFormat, rule: str, k: int) -> None:
    x = gaussian(5, k)
    padded = np.pad(x, ((0, 0), (0, -k % fmt.block)))
    q, whole = fmt.quantize(x, rule), fmt.quantize(padded, rule)
    np.testing.assert_array_equal(q.codes, whole.codes[:, :k])
    np.testing.assert_array_equal(q.scales, whole.scales)
    np.testing.assert_array_equal(fmt.dequantize(q), fmt.dequantize(whole)[:, :k])


@every_rule
@pytest.mark.parametrize("shape", [(0, 40), (3, 0), (0,), (0, 2, 5)])
def test_empty(fmt: BlockFormat, rule: str, shape: tuple[int, ...]) -> None:
    q = fmt.quantize(np.zeros(shape, np.float32), rule)
    assert q.scales.shape == (*shape[:-1], fmt.blocks(shape[-1]))
    assert fmt.dequantize(q).shape == shape


@every_format
def test_a_scalar_is_refused(fmt: BlockFormat) -> None:
    with pytest.raises(ConfigError, match="scalar"):
        fmt.quantize(np.float32(1).reshape(()))


@every_rule
def test_per_row_is_each_row_alone(fmt: BlockFormat, rule: str) -> None:
    x = gaussian(2, 3, 50) * np.float32([[[1e-3]], [[50]]])
    q = fmt.quantize(x, rule, per_row=True)
    for i in np.ndindex(2, 3):
        alone = fmt.quantize(x[i], rule)
        np.testing.assert_array_equal(q.codes[i], alone.codes)
        np.testing.assert_array_equal(q.scales[i], alone.scales)
        if q.tensor_scale is not None:
            assert q.tensor_scale.shape == (2, 3, 1)
            assert q.tensor_scale[i] == alone.tensor_scale
        np.testing.assert_array_equal(fmt.dequantize(q)[i], fmt.dequantize(alone))


@every_rule
@pytest.mark.parametrize("per_row", [False, True])
def test_chunks_change_nothing(
    fmt: BlockFormat, rule: str, per_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = gaussian(23, 72)
    q = fmt.quantize(x, rule, per_row=per_row)
    values = fmt.dequantize(q)
    monkeypatch.setattr(module, "CHUNK", 150)
    assert_same(fmt.quantize(x, rule, per_row=per_row), q)
    np.testing.assert_array_equal(fmt.dequantize(q), values)


@every_format
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_are_read_as_float32(fmt: BlockFormat, dtype: type) -> None:
    x = gaussian(3, 64).astype(dtype)
    assert_same(fmt.quantize(x), fmt.quantize(x.astype(np.float32)))


@every_format
def test_a_float64_beyond_float32_spoils_its_block(fmt: BlockFormat) -> None:
    x = np.ones((1, 64))
    x[0, 0] = 1e300
    assert np.isnan(fmt.dequantize(fmt.quantize(x))[0, 0])


@every_format
def test_strides_do_not_matter_and_the_input_stays(fmt: BlockFormat) -> None:
    x = gaussian(64, 48)
    before = x.copy()
    assert_same(fmt.quantize(x.T), fmt.quantize(np.ascontiguousarray(x.T)))
    assert_same(fmt.quantize(x[::2, ::-1]), fmt.quantize(x[::2, ::-1].copy()))
    np.testing.assert_array_equal(x, before)


@every_format
@pytest.mark.parametrize("exponent", [-110, -14, 0, 9, 100])
def test_representable_values_survive(fmt: BlockFormat, exponent: int) -> None:
    values = fmt.element.values[np.abs(fmt.element.values) <= fmt.element.max]
    x = np.resize(values, (-(-values.size // fmt.block), fmt.block))
    x[:, 0] = fmt.element.max  # so that every block has the scale 2^exponent, or 448 times that
    x = np.ldexp(x, exponent) * np.float32(448 if fmt.has_tensor_scale else 1)
    np.testing.assert_array_equal(fmt.dequantize(fmt.quantize(x)), x)


def spread(fmt: BlockFormat, x: np.ndarray) -> np.ndarray:
    """Each element's block maximum."""
    return np.repeat(np.abs(x.reshape(-1, fmt.block)).max(axis=1), fmt.block).reshape(x.shape)


@every_rule
@patient
@given(x=MODERATE)
def test_error_bound(fmt: BlockFormat, rule: str, x: np.ndarray) -> None:
    """Half a step of the element's grid at x, plus what the rule clips off the block's maximum.

    rceil never clips. floor and mse may have half the scale of rceil, so may clip at max * scale;
    even rounds down at most half a step of the maximum, so does absmax by the rounding of E4M3. All
    of that is max(0, |x| - max * scale).
    """
    q = fmt.quantize(x, rule)
    scale = decode_scales(q.scales, fmt.scale).astype(np.float64)
    if q.tensor_scale is not None:
        scale = scale * float(q.tensor_scale)
    scale = np.repeat(scale, fmt.block, axis=1)
    wide = np.abs(x.astype(np.float64))
    step = fmt.element.smallest * scale
    if not fmt.element.is_integer:
        step = np.maximum(step, wide * 2.0**-fmt.element.mantissa_bits)
    clipped = np.maximum(0, wide - fmt.element.max * scale)
    if rule == "rceil":
        assert not clipped.any()
    rounding = 4 * np.finfo(np.float32).eps * wide  # of x / d, s * g and the product back
    error = np.abs(fmt.dequantize(q).astype(np.float64) - x)
    assert (error <= np.maximum(step / 2, clipped) + rounding).all()
    if rule in ("rceil", "absmax") and (spread(fmt, x) > 0).all() and q.scales.min() > 8:
        assert (clipped <= spread(fmt, x) / 16).all()  # E4M3 rounds down by 1/16 at most


@pytest.mark.parametrize(
    ("fmt", "rule"),
    [(fmt, rule) for fmt, rule in RULED if not fmt.has_tensor_scale],
    ids=[f"{fmt.name}-{rule}" for fmt, rule in RULED if not fmt.has_tensor_scale],
)
@patient
@given(x=MODERATE)
def test_mx_is_idempotent(fmt: BlockFormat, rule: str, x: np.ndarray) -> None:
    once = fmt.dequantize(fmt.quantize(x, rule))
    np.testing.assert_array_equal(fmt.dequantize(fmt.quantize(once, rule)), once)


@every_nv
@patient
@given(
    x=arrays(np.float32, (3, 64), elements=st.floats(1, 200, width=32)),
    signs=arrays(np.bool_, (3, 64)),
)
def test_nv_keeps_its_bytes_when_quantized_again(
    fmt: BlockFormat, x: np.ndarray, signs: np.ndarray
) -> None:
    """The maximum's code is max for every E4M3 rounding of a normal scale, so all scales come back.

    The tensor scale is a new quotient: it may differ in its last bit.
    """
    q = fmt.quantize(np.where(signs, -x, x))
    again = fmt.quantize(fmt.dequantize(q))
    np.testing.assert_array_equal(again.scales, q.scales)
    np.testing.assert_array_equal(again.codes, q.codes)
    assert q.tensor_scale is not None
    assert again.tensor_scale is not None
    assert abs(again.tensor_scale - q.tensor_scale) <= 2 * np.spacing(q.tensor_scale)


@every_rule
@patient
@given(x=MODERATE)
def test_quantization_is_odd(fmt: BlockFormat, rule: str, x: np.ndarray) -> None:
    np.testing.assert_array_equal(
        fmt.dequantize(fmt.quantize(-x, rule)), -fmt.dequantize(fmt.quantize(x, rule))
    )


@every_format
def test_temporaries_are_small(fmt: BlockFormat) -> None:
    x = gaussian(1 << 10, 1 << 12)
    tracemalloc.start()
    q = fmt.quantize(x)
    held = q.codes.nbytes + q.scales.nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - held < 16 << 20  # about twelve float32 arrays of a chunk of 2^18
