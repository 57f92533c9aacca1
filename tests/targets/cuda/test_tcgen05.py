"""What `tcgen05` is told: scale layout and descriptors, against TVM's and field by field."""

import numpy as np
import pytest
from tvm.backend.cuda.cpp.descriptors import (
    encode_instr_descriptor_block_scaled_uint32,
    encode_smem_descriptor_base_uint64,
)
from tvm.backend.cuda.tile_primitive.gemm_async.tcgen05 import sf_smem_layout

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.gemm_tcgen05 import Tokens
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.targets.cuda.layout_tcgen05 import ATOM, atoms, pack_scales, pair_of, unpack_scales
from lbcompiler.targets.cuda.tcgen05 import CODES, SCALES, instruction

DTYPES = {
    "nvfp4": ("float4_e2m1fn", "float8_e4m3fn", 64),
    "mxfp4": ("float4_e2m1fn", "float8_e8m0fnu", 64),
    "mxfp8": ("float8_e4m3fn", "float8_e8m0fnu", 32),
    "mxfp8_e5m2": ("float8_e5m2", "float8_e8m0fnu", 32),
}  # of codes, of scales, and an instruction's k
SWIZZLE_128, NO_SWIZZLE = 3, 0  # as TVM numbers them
PAIRS = [
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("mxfp8", "mxfp8_e5m2"),
    ("mxfp8_e5m2", "mxfp8"),
]
each_pair = pytest.mark.parametrize(("weight", "act"), PAIRS)


def bits(word: int, first: int, count: int) -> int:
    return word >> first & ((1 << count) - 1)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8"])
def test_a_scale_lies_where_the_manual_has_it(name) -> None:
    """PTX ISA, "Scale Factor Layout": lane r % 32, of the column of its 32 rows byte j % 4."""
    pair = pair_of(FORMATS[name], FORMATS[name])
    rows, k = 131, 3 * pair.depth
    scales = np.random.default_rng(0).integers(0, 256, (rows, k // pair.weight.block), np.uint8)
    packed = pack_scales(scales, pair, k)
    assert packed.shape == (2, 3 * atoms(pair), ATOM)
    layout = sf_smem_layout(128, 4, 4)
    for r in range(rows):
        for j in range(scales.shape[1]):
            at = r % 32 * 16 + r % 128 // 32 * 4 + j % 4
            assert packed[r // 128, j // 4, at] == scales[r, j]
            if j < 4:
                assert int(layout.apply(r % 128, j, shape=[128, 4])["m"]) == at
    assert not packed[1, :, 3 * 16 :].any()  # rows beyond the last of the second group
    np.testing.assert_array_equal(unpack_scales(packed, rows, scales.shape[1]), scales)


@each_pair
@pytest.mark.parametrize("tokens", [16, 128, 256])
def test_the_instruction_descriptor_is_tvms(weight, act, tokens) -> None:
    (a, scale, k), b = DTYPES[weight], DTYPES[act][0]
    pair = pair_of(FORMATS[weight], FORMATS[act])
    theirs = encode_instr_descriptor_block_scaled_uint32(
        128, tokens, k, "float32", a, b, scale, False, False
    )
    assert instruction(pair, tokens, 0) == theirs
    assert pair.step == k


@each_pair
def test_each_step_begins_at_its_own_scales(weight, act) -> None:
    pair = pair_of(FORMATS[weight], FORMATS[act])
    words = [instruction(pair, 128, step) for step in range(4)]
    firsts = {4: [0, 0, 0, 0], 2: [0, 2, 0, 2], 1: [0, 1, 2, 3]}[pair.step_scales]
    assert [bits(word, 4, 2) for word in words] == firsts  # B's scale factor id
    assert [bits(word, 29, 2) for word in words] == firsts  # A's
    assert {bits(word, 17, 6) * 8 for word in words} == {128}
    assert {bits(word, 24, 5) * 16 for word in words} == {128}


def test_matrix_descriptors_are_tvms() -> None:
    assert encode_smem_descriptor_base_uint64(1, 1024 // 16, SWIZZLE_128) == CODES
    assert encode_smem_descriptor_base_uint64(0, 128 // 16, NO_SWIZZLE) == SCALES


@each_pair
def test_tensor_memory_holds_what_a_block_takes(weight, act) -> None:
    pair = pair_of(FORMATS[weight], FORMATS[act])
    kernel = kernel_for(FORMATS[weight], FORMATS[act], arch_named("sm_100a+tcgen05"))
    config = kernel.default_config(4096, 4096)
    assert config.wide_stages >= 4
    for count in (16, 128, 256):
        tokens = Tokens(count, 1)
        used = count + 4 * atoms(pair) * (1 + tokens.groups)
        assert used <= tokens.columns(pair) <= 512
        assert tokens.columns(pair).bit_count() == 1
