"""How packed weights lie in memory: tiles of 16 columns (rows of W), k running in groups of
`k_group` within them.

A tile is what one vector instruction multiplies: 16 columns times one k-group are 64 consecutive
bytes of 8-bit codes for k_group 4, 16 bytes for k_group 1. Codes narrower than a byte stay narrow
in memory:

| bits | planes, uint8, T = ceil(N/16), g = k_group, K padded to the block |
|---|---|
| 8 | (T, K/g, 16 g) |
| 4 | (T, K/2g, 16 g): low nibble k-group 2i, high nibble k-group 2i+1 |
| 6 | low four bits as above; (T, K/4g, 16 g): upper two, k-groups 4i .. 4i+3 from low to high |

Within the last axis the column is the slower index: byte 16 g = column * g + k. Block scales are
bytes, (T, K/block, 16). INT codes are stored with their sign bit flipped (offset binary: value +
2^(bits-1)), which makes them the unsigned operand of the dot product as they are; the other
elements keep their codes. Padding is the code of zero. Float weights that were not quantized are
(T, K, 16) float32.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats import BlockFormat, Element, Quantized
from lbcompiler.formats.scales import E8M0_BIAS

Array = NDArray[Any]
COLUMNS = 16
LINE = 64  # bytes of a cache line


def tiles(n: int) -> int:
    """Tiles of 16 columns that hold n."""
    return -(-n // COLUMNS)


def padded(k: int, block: int) -> int:
    """k rounded up to whole blocks."""
    return -(-k // block) * block


def row_stride(k: int) -> int:
    """Bytes from one row of quantized activations to the next: an odd number of cache lines.

    Rows at a multiple of 4 KiB would share a set of the L1 cache, which has 8 or 12 ways.
    """
    return (-(-k // LINE) | 1) * LINE


def plane_shapes(n: int, k: int, bits: int, group: int) -> tuple[tuple[int, int, int], ...]:
    """Shapes of the planes of (n, k) codes; k is padded already."""
    shares = {8: (1,), 4: (2,), 6: (2, 4)}[bits]
    return tuple((tiles(n), k // (share * group), COLUMNS * group) for share in shares)


def offset_mask(element: Element) -> int:
    """What a code is XORed with to be stored: the sign bit of an integer."""
    return 1 << (element.bits - 1) if element.is_integer else 0


def _tiled(codes: Array, k: int, group: int, fill: int) -> Array:
    """(N, K) -> (tiles, K / group, 16 * group), padded with `fill`."""
    count = tiles(codes.shape[0])
    whole = np.full((count * COLUMNS, k), fill, np.uint8)
    whole[: codes.shape[0], : codes.shape[1]] = codes
    grouped = whole.reshape(count, COLUMNS, k // group, group)
    if group == 4:  # one word a group: numpy then moves four bytes at a time
        words = grouped.view(np.uint32).reshape(count, COLUMNS, k // group)
        return np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8)
    moved = np.ascontiguousarray(grouped.transpose(0, 2, 1, 3))
    return moved.reshape(count, k // group, COLUMNS * group)


def _untiled(tiled: Array, n: int, k: int, group: int) -> Array:
    count, groups, _ = tiled.shape
    moved = tiled.reshape(count, groups, COLUMNS, group).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(moved.reshape(count * COLUMNS, groups * group)[:n, :k])


def pack_codes(codes: Array, element: Element, block: int, group: int) -> tuple[Array, ...]:
    """(N, K) codes -> the planes of the table above, K padded to the block."""
    mask = offset_mask(element)
    k = padded(codes.shape[1], block)
    tiled = _tiled(codes ^ np.uint8(mask), k, group, mask)
    if element.bits == 8:
        return (tiled,)
    nibbles = (tiled[:, 0::2] & 15) | (tiled[:, 1::2] << 4)
    if element.bits == 4:
        return (nibbles,)
    upper = tiled >> 4
    pairs = upper[:, 0::4] | upper[:, 1::4] << 2 | upper[:, 2::4] << 4 | upper[:, 3::4] << 6
    return nibbles, pairs


def unpack_codes(planes: tuple[Array, ...], n: int, k: int, element: Element, group: int) -> Array:
    """The inverse of `pack_codes`: (n, k) codes."""
    if element.bits == 8:
        return _untiled(planes[0], n, k, group) ^ np.uint8(offset_mask(element))
    count, halves, width = planes[0].shape
    tiled = np.empty((count, 2 * halves, width), np.uint8)
    tiled[:, 0::2], tiled[:, 1::2] = planes[0] & 15, planes[0] >> 4
    if element.bits == 6:
        for i in range(4):
            tiled[:, i::4] |= (planes[1] >> (2 * i) & 3) << 4
    return _untiled(tiled, n, k, group) ^ np.uint8(offset_mask(element))


def pack_scales(weight: Quantized, fmt: BlockFormat) -> Array:
    """The scale bytes as `pack_columns` has them; in E8M0 the scale of zeros, and of padding, is 1.

    Their own is the smallest there is, with which exponents could not be added (gemm_integer.py).
    """
    if fmt.scale != "e8m0":
        return pack_columns(weight.scales)
    n, k = weight.codes.shape
    codes = np.pad(weight.codes, ((0, 0), (0, padded(k, fmt.block) - k)))
    is_zero = ~codes.reshape(n, -1, fmt.block).any(axis=-1)
    scales = np.where(is_zero & (weight.scales == 0), np.uint8(E8M0_BIAS), weight.scales)
    return pack_columns(scales, fill=E8M0_BIAS)


def pack_columns(values: Array, fill: float = 0) -> Array:
    """(N, count) scale bytes or float weights -> (tiles, count, 16), columns beyond N `fill`."""
    count = tiles(values.shape[0])
    whole = np.full((count * COLUMNS, values.shape[1]), fill, values.dtype)
    whole[: values.shape[0]] = values
    return np.ascontiguousarray(whole.reshape(count, COLUMNS, -1).transpose(0, 2, 1))


def unpack_columns(packed: Array, n: int) -> Array:
    """The inverse of `pack_columns`: (n, count)."""
    count, width, _ = packed.shape
    return np.ascontiguousarray(packed.transpose(0, 2, 1).reshape(count * COLUMNS, width)[:n])
