"""GGUF's MXFP4 (type 39) and NVFP4 (type 40) blocks: bytes as llama.cpp lays them out, and back.

A byte holds elements i and i + half a block, not neighbours. llama.cpp halves every scale and
doubles every code, which is the same number; it reads an E8M0 of 0xFF and an E4M3 of 0x7F as
finite, so a block with a NaN scale is refused here.
"""

import numpy as np

from lbcompiler.errors import ConfigError
from lbcompiler.formats.block_format import BlockFormat, Quantized
from lbcompiler.formats.elements import Codes, Floats
from lbcompiler.formats.mxfp4 import MXFP4
from lbcompiler.formats.nvfp4 import NVFP4
from lbcompiler.formats.scales import NAN_BYTE

SUB_BLOCKS = {MXFP4: 1, NVFP4: 4}  # blocks of ours in one of GGUF's


def pack_gguf(q: Quantized, fmt: BlockFormat) -> Codes:
    """(..., K) -> (..., bytes): 17 bytes per 32 (MXFP4) or 36 per 64 (NVFP4), scales first.

    NVFP4's tensor scale is another tensor of the file, `<name>.scale`, and is not in these bytes.
    Raises ConfigError for a K that leaves a GGUF block short, a NaN scale, or another format.
    """
    count = _sub_blocks(fmt)
    width, (*rows, k) = count * fmt.block, q.codes.shape
    if k % width:
        raise ConfigError(
            f"GGUF stores {fmt.name} in blocks of {width}, and K = {k} leaves a short one; "
            "pad K with zeros."
        )
    if (q.scales == NAN_BYTE[fmt.scale]).any():
        raise ConfigError(
            f"GGUF has no NaN scale, and this {fmt.name} tensor has one; "
            "quantize it without NaN and Inf."
        )
    halves = q.codes.reshape(*rows, k // width, count, 2, fmt.block // 2)
    pairs = halves[..., 0, :] | halves[..., 1, :] << np.uint8(4)
    scales = q.scales.reshape(*rows, k // width, count)
    blocks = np.concatenate([scales, pairs.reshape(*rows, k // width, width // 2)], axis=-1)
    return blocks.reshape(*rows, -1)


def unpack_gguf(packed: Codes, fmt: BlockFormat, tensor_scale: Floats | None = None) -> Quantized:
    """The inverse of `pack_gguf`; an NVFP4 without a scale tensor has a tensor scale of 1."""
    count = _sub_blocks(fmt)
    width, (*rows, size) = count * fmt.block, packed.shape
    if size % (count + width // 2):
        raise ConfigError(
            f"GGUF's {fmt.name} takes {count + width // 2} bytes per {width} elements; "
            f"rows of {size} bytes are cut short."
        )
    blocks = packed.reshape(*rows, -1, count + width // 2)
    pairs = blocks[..., count:].reshape(*blocks.shape[:-1], count, fmt.block // 2)
    halves = np.stack([pairs & np.uint8(0xF), pairs >> np.uint8(4)], axis=-2)
    if fmt.has_tensor_scale and tensor_scale is None:
        tensor_scale = np.ones((), np.float32)
    scales = np.ascontiguousarray(blocks[..., :count]).reshape(*rows, -1)
    return Quantized(halves.reshape(*rows, -1), scales, tensor_scale)


def _sub_blocks(fmt: BlockFormat) -> int:
    if fmt not in SUB_BLOCKS:
        names = ", ".join(known.name for known in SUB_BLOCKS)
        raise ConfigError(f"GGUF has no blocks of {fmt.name}; it has {names}.")
    return SUB_BLOCKS[fmt]
