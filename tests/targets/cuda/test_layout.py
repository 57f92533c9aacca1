"""The packed layout, its inverse, and where PTX's fragments want each code."""

import numpy as np
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS, Quantized
from lbcompiler.targets.cuda.layout import (
    canonical,
    pack_codes,
    pack_scales,
    plane_shapes,
    unpack_codes,
    unpack_scales,
)
from tests.targets.cuda.reference import products

each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@each_format
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (37, 200)])
def test_codes_come_back(fmt, n, k) -> None:
    codes = np.random.default_rng(n).integers(0, 2**fmt.element.bits, (n, k), dtype=np.uint8)
    planes = pack_codes(codes, fmt.element)
    assert tuple(plane.shape for plane in planes) == plane_shapes(n, k, fmt.element.bits)
    np.testing.assert_array_equal(unpack_codes(planes, n, k, fmt.element), codes)


@pytest.mark.parametrize("block", [16, 32])
def test_scales_come_back(block) -> None:
    scales = np.random.default_rng(0).integers(0, 256, (37, 9), dtype=np.uint8)
    packed = pack_scales(scales, block)
    np.testing.assert_array_equal(unpack_scales(packed, 37, 9, block), scales)


def test_a_lane_holds_what_the_instruction_takes_from_it() -> None:
    """PTX ISA, mma.m16n8k16 operand A: register a1 of lane 4 g + c is row g + 8, k 2 c and 2 c + 1;
    a2 row g, k 2 c + 8 and 2 c + 9."""
    codes = np.zeros((16, 64), np.uint8)
    g, c, step = 5, 3, 2
    codes[g + 8, step * 16 + 2 * c] = 1  # pair 2 (row g + 8, lower half): low and high half
    codes[g + 8, step * 16 + 2 * c + 1] = 2
    codes[g, step * 16 + 2 * c + 8] = 4  # pair 1 (row g, upper half)
    (plane,) = pack_codes(codes, FORMATS["nvfp4"].element)
    words = plane.view("<u4").reshape(32, 4)
    assert words[4 * g + c, step] == 1 << 8 | 2 << 24 | 4 << 4
    assert np.count_nonzero(words) == 1


@each_format
def test_padding_is_the_code_of_zero(fmt) -> None:
    codes = np.ones((3, 5), np.uint8)
    whole = unpack_codes(pack_codes(codes, fmt.element), 16, 64, fmt.element)
    assert (fmt.element.values[whole[3:]] == 0).all()
    assert (fmt.element.values[whole[:, 5:]] == 0).all()


def test_a_nan_code_makes_its_block_nan() -> None:
    fmt = FORMATS["mxfp8"]
    codes = np.ones((2, 70), np.uint8)
    codes[1, 69] = 0x7F  # NaN of E4M3, in the short last block
    w = canonical(Quantized(codes, np.full((2, 3), 127, np.uint8)), fmt)
    np.testing.assert_array_equal(np.isnan(products(w, fmt)[1]), np.arange(70) >= 64)
    assert np.isfinite(products(w, fmt)[0]).all()


def test_what_no_kernel_decodes_is_refused() -> None:
    infinite = Quantized(np.full((1, 32), 0x7C, np.uint8), np.full((1, 1), 127, np.uint8))
    with pytest.raises(ConfigError, match="mxfp8_e5m2 weights with infinite codes"):
        canonical(infinite, FORMATS["mxfp8_e5m2"])
    negative = Quantized(np.ones((1, 16), np.uint8), np.full((1, 1), 0x90, np.uint8))
    with pytest.raises(ConfigError, match="nvfp4 weights with negative scales"):
        canonical(negative, FORMATS["nvfp4"])
