"""Codes and scale bytes <-> the bytes of a file or a device: pairs of exact inverses.

Codes below a byte are packed along the last axis, the first code in the lowest bits, as ONNX does
over the flattened tensor (give it `codes.reshape(-1)`), and so is every packed file we write.
"""

import numpy as np

from lbcompiler.errors import ConfigError
from lbcompiler.formats.block_format import Quantized
from lbcompiler.formats.elements import Codes
from lbcompiler.formats.scales import NAN_BYTE

OCP_MXINT8_EXPONENT = 6  # OCP MX v1.0, 5.3.4: an INT8 element is worth 2^-6 of its integer

CODES_TOGETHER = {4: 2, 6: 4, 8: 1}  # bits of a code: how many of them fill whole bytes

TILE_ROWS, TILE_COLUMNS = 128, 4  # of scales: 512 bytes that a tcgen05 / mma.block_scale reads
QUARTER = 32  # rows; the four quarters of a tile lie side by side


def packed_bytes(k: int, bits: int) -> int:
    """Bytes of k codes of `bits` bits."""
    return -(-k * bits // 8)


def pack_codes(codes: Codes, bits: int) -> Codes:
    """(..., K) codes of 4, 6 or 8 bits -> (..., packed_bytes(K)); the last byte filled with 0."""
    _check_bits(bits)
    if bits == 8:
        return codes
    k = codes.shape[-1]
    padded = _pad_last(codes, -k % CODES_TOGETHER[bits])
    if bits == 4:
        return padded[..., 0::2] | padded[..., 1::2] << np.uint8(4)
    a, b, c, d = (padded[..., i::4] for i in range(4))
    packed = np.empty((*a.shape, 3), np.uint8)
    packed[..., 0] = a | b << np.uint8(6)
    packed[..., 1] = b >> np.uint8(2) | c << np.uint8(4)
    packed[..., 2] = c >> np.uint8(4) | d << np.uint8(2)
    return packed.reshape(*codes.shape[:-1], padded.shape[-1] * 3 // 4)[..., : packed_bytes(k, 6)]


def unpack_codes(packed: Codes, bits: int, k: int) -> Codes:
    """The inverse of `pack_codes`: (..., packed_bytes(k)) -> (..., k). Raises on another length."""
    _check_bits(bits)
    if packed.shape[-1] != packed_bytes(k, bits):
        raise ConfigError(
            f"{k} codes of {bits} bits take {packed_bytes(k, bits)} bytes, "
            f"but the packed tensor has rows of {packed.shape[-1]}: {packed.shape}."
        )
    if bits == 8:
        return packed
    together = CODES_TOGETHER[bits]
    codes = np.empty((*packed.shape[:-1], k + -k % together), np.uint8)
    if bits == 4:
        np.bitwise_and(packed, np.uint8(15), out=codes[..., 0::2])
        np.right_shift(packed, np.uint8(4), out=codes[..., 1::2])
        return codes[..., :k]
    padded = _pad_last(packed, -packed.shape[-1] % 3)
    a, b, c = (padded[..., i::3] for i in range(3))
    codes[..., 0::4] = a
    codes[..., 1::4] = a >> np.uint8(6) | b << np.uint8(2)
    codes[..., 2::4] = b >> np.uint8(4) | c << np.uint8(4)
    codes[..., 3::4] = c >> np.uint8(2)
    codes &= np.uint8(63)
    return codes[..., :k]


def swizzle_scales(scales: Codes) -> Codes:
    """(M, Ks) scale bytes -> (ceil(M/128) * ceil(Ks/4) * 512,): Blackwell's 128x4 scale layout.

    Byte (m, k) goes to ((m // 128) * ceil(Ks / 4) + k // 4) * 512 + (m % 32) * 16
    + (m % 128 // 32) * 4 + k % 4 (PTX ISA, tcgen05 scale factor layout); padding is zero.
    """
    m, columns = scales.shape
    down, across = -(-m // TILE_ROWS), -(-columns // TILE_COLUMNS)
    padded = np.pad(scales, ((0, -m % TILE_ROWS), (0, -columns % TILE_COLUMNS)))
    tiles = padded.reshape(down, TILE_ROWS // QUARTER, QUARTER, across, TILE_COLUMNS)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(-1)


def unswizzle_scales(packed: Codes, m: int, columns: int) -> Codes:
    """The inverse of `swizzle_scales`: -> (m, columns)."""
    down, across = -(-m // TILE_ROWS), -(-columns // TILE_COLUMNS)
    expected = down * across * TILE_ROWS * TILE_COLUMNS
    if packed.size != expected:
        raise ConfigError(
            f"The 128x4 layout of {m} x {columns} scales takes {expected} bytes, not {packed.size}."
        )
    tiles = packed.reshape(down, across, QUARTER, TILE_ROWS // QUARTER, TILE_COLUMNS)
    padded = tiles.transpose(0, 3, 2, 1, 4).reshape(down * TILE_ROWS, across * TILE_COLUMNS)
    return np.ascontiguousarray(padded[:m, :columns])


def to_ocp_mxint8(q: Quantized) -> tuple[Codes, Codes]:
    """(codes, scale bytes) of OCP's MXINT8: the same integers under bytes larger by 6.

    Raises ConfigError where OCP has no such byte: for blocks above 127 * 2^121, float32's end.
    """
    nan = q.scales == NAN_BYTE["e8m0"]
    if (~nan & (q.scales >= NAN_BYTE["e8m0"] - OCP_MXINT8_EXPONENT)).any():
        raise ConfigError(
            "An MXINT8 block reaches beyond 127 * 2^121, where OCP's scales end; "
            "scale the tensor down."
        )
    return q.codes, np.where(nan, q.scales, q.scales + np.uint8(OCP_MXINT8_EXPONENT))


def from_ocp_mxint8(codes: Codes, scales: Codes, block: int = 32) -> Quantized:
    """The inverse of `to_ocp_mxint8`: codes (..., K), scales (..., ceil(K/32)) -> `Quantized`.

    A block of zeros may have any byte; others with a byte below 6 (scale < 2^-121) are refused.
    """
    below = scales < OCP_MXINT8_EXPONENT
    blocks = _pad_last(codes, -codes.shape[-1] % block)
    occupied = blocks.reshape(*blocks.shape[:-1], -1, block).any(axis=-1)
    if (below & occupied).any():
        raise ConfigError(
            "An OCP MXINT8 block has a scale below 2^-121, which plain integers have no byte for; "
            "set such blocks to zero, or scale the tensor up."
        )
    nan = scales == NAN_BYTE["e8m0"]
    shifted = np.where(below, np.uint8(0), scales - np.uint8(OCP_MXINT8_EXPONENT))
    return Quantized(codes, np.where(nan, scales, shifted))


def _check_bits(bits: int) -> None:
    if bits not in CODES_TOGETHER:
        raise ConfigError(f"Codes have 4, 6 or 8 bits; {bits} cannot be packed.")


def _pad_last(x: Codes, count: int) -> Codes:
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)]) if count else x
