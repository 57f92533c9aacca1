"""How packed weights lie in memory: in the order in which `mma.sync` wants them in registers.

A tile is 16 rows of W by 64 k's. Lane l of a warp holds, of each tile, the codes of rows g and
g + 8 (g = l / 4) at k = 16 s + 8 i + 2 c + h (c = l % 4; step s = 0..3, half i = 0..1, h = 0..1):
what four instructions m16n8k16 take from it as their operand A, or as operand B of two column
tiles (PTX ISA, "Matrix Fragments for mma.m16n8k16"; a warp of `wgmma` holds its operand A the same
way). So no weight passes through `ldmatrix`, and a lane loads its share of a tile 16 bytes at a
time.

Codes of one register of a fragment (h = 0, 1) lie in the lower and the upper half of a word, at the
same place: a shift and a mask take out both. With pair j = 2 t + i of row g + 8 t:

| bits | planes, uint8, T = ceil(N/16), S = ceil(K/64) | of a lane |
|---|---|---|
| 4 | (T, S, 512) | word s; pair j at bits 4 j and 16 + 4 j |
| 6 | as above, the lower four; (T, S, 256) | word s / 2; upper two at bits 8 (s % 2) + 2 j |
| 8 | (T, S, 1024): steps 0, 1 of all lanes, then 2, 3 | word 2 (s % 2) + t; pair i at bits 8 i |

Block scales are bytes, (T, S, 16 * 64 / block): of each row the scales of its blocks. INT4 and INT6
are stored with their sign bit flipped (value + 2^(bits-1)); padding is the code of zero.

Activations are rows of bfloat16 (as uint16), K padded with zeros to whole tiles.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat, Element, Quantized
from lbcompiler.formats.scales import NAN_BYTE

Array = NDArray[Any]
ROWS = 16
DEPTH = 64  # k's of a tile
STEPS = DEPTH // 16  # of k16, one instruction each
LANES = 32


def tiles(n: int) -> int:
    """Tiles of 16 rows that hold n."""
    return -(-n // ROWS)


def depths(k: int) -> int:
    """Tiles of 64 k's that hold k."""
    return -(-k // DEPTH)


def plane_bytes(bits: int) -> tuple[int, ...]:
    """Bytes of a tile in each plane."""
    return {4: (512,), 6: (512, 256), 8: (1024,)}[bits]


def scale_bytes(fmt: BlockFormat) -> int:
    """Bytes of a tile's scales."""
    return ROWS * DEPTH // fmt.block


def tile_bytes(fmt: BlockFormat) -> int:
    """Bytes of a tile: its codes and its scales."""
    return sum(plane_bytes(fmt.element.bits)) + scale_bytes(fmt)


def plane_shapes(n: int, k: int, bits: int) -> tuple[tuple[int, int, int], ...]:
    """Shapes of the planes of (n, k) codes."""
    return tuple((tiles(n), depths(k), size) for size in plane_bytes(bits))


def offset_mask(element: Element) -> int:
    """What a code is XORed with to be stored."""
    return 1 << (element.bits - 1) if element.is_integer and element.bits < 8 else 0


def _fragments(codes: Array, fill: int) -> Array:
    """(N, K) -> (T, S, lane, step, pair, half)."""
    n, k = codes.shape
    whole = np.full((tiles(n) * ROWS, depths(k) * DEPTH), fill, np.uint8)
    whole[:n, :k] = codes
    parts = whole.reshape(tiles(n), 2, 8, depths(k), STEPS, 2, 4, 2)  # T t g S s i c h
    ordered = parts.transpose(0, 3, 2, 6, 4, 1, 5, 7)
    return ordered.reshape(tiles(n), depths(k), LANES, STEPS, 4, 2)


def _from_fragments(parts: Array, n: int, k: int) -> Array:
    count, depth = parts.shape[:2]
    whole = parts.reshape(count, depth, 8, 4, STEPS, 2, 2, 2).transpose(0, 5, 2, 1, 4, 6, 3, 7)
    return np.ascontiguousarray(whole.reshape(count * ROWS, depth * DEPTH)[:n, :k])


def _words(parts: Array, width: int) -> Array:
    """(.., pairs, half) fields of `width` bits -> (..) words."""
    shifts = np.arange(parts.shape[-2], dtype=np.uint32)[:, None] * width + np.array(
        [0, 16], np.uint32
    )
    words = parts.astype(np.uint32) << shifts
    return np.asarray(np.bitwise_or.reduce(words, axis=(-2, -1)))


def _fields(words: Array, pairs: int, width: int) -> Array:
    """The inverse of `_words`."""
    shifts = np.arange(pairs, dtype=np.uint32)[:, None] * width + np.array([0, 16], np.uint32)
    return (words[..., None, None] >> shifts & ((1 << width) - 1)).astype(np.uint8)


def _as_bytes(words: Array, size: int) -> Array:
    return np.ascontiguousarray(words.astype("<u4")).view(np.uint8).reshape(*words.shape[:2], size)


def pack_codes(codes: Array, element: Element) -> tuple[Array, ...]:
    """(N, K) codes -> the planes of the table above."""
    mask = np.uint8(offset_mask(element))
    parts = _fragments(codes ^ mask, int(mask))
    count, depth = parts.shape[:2]
    if element.bits == 8:
        words = _words(parts.reshape(count, depth, LANES, 2, 4, 2, 2), 8)  # lane, s / 2, word
        return (_as_bytes(words.transpose(0, 1, 3, 2, 4), 1024),)
    low = _as_bytes(_words(parts & 15, 4), 512)
    if element.bits == 4:
        return (low,)
    return low, _as_bytes(_words((parts >> 4).reshape(count, depth, LANES, 2, 8, 2), 2), 256)


def unpack_codes(planes: tuple[Array, ...], n: int, k: int, element: Element) -> Array:
    """The inverse of `pack_codes`: (n, k) codes."""
    count, depth = planes[0].shape[:2]
    words = planes[0].view("<u4")
    if element.bits == 8:
        moved = words.reshape(count, depth, 2, LANES, 4).transpose(0, 1, 3, 2, 4)
        parts = _fields(moved, 2, 8).reshape(count, depth, LANES, STEPS, 4, 2)
    else:
        parts = _fields(words.reshape(count, depth, LANES, STEPS), 4, 4)
    if element.bits == 6:
        upper = _fields(planes[1].view("<u4").reshape(count, depth, LANES, 2), 8, 2)
        parts = parts | upper.reshape(parts.shape) << 4
    return _from_fragments(parts, n, k) ^ np.uint8(offset_mask(element))


def pack_scales(scales: Array, block: int) -> Array:
    """(N, ceil(K/block)) bytes -> (T, S, 16 * 64 / block), padded with zeros."""
    n, count = scales.shape
    each = DEPTH // block
    depth = -(-count // each)
    whole = np.zeros((tiles(n) * ROWS, depth * each), np.uint8)
    whole[:n, :count] = scales
    moved = whole.reshape(tiles(n), ROWS, depth, each).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(moved).reshape(tiles(n), depth, ROWS * each)


def unpack_scales(packed: Array, n: int, count: int, block: int) -> Array:
    """The inverse of `pack_scales`: (n, count)."""
    t, depth, _ = packed.shape
    moved = packed.reshape(t, depth, ROWS, DEPTH // block).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(moved.reshape(t * ROWS, -1)[:n, :count])


def canonical(weight: Quantized, fmt: BlockFormat) -> Quantized:
    """The same values with what kernels do not decode put another way: a block with a NaN code has
    a NaN scale, and one with a NaN scale has zero codes.

    Raises ConfigError for infinite codes of E5M2 and for negative scales, which no quantizer
    writes.
    """
    values = fmt.element.values[weight.codes]
    if np.isinf(values).any():
        raise ConfigError(f"{fmt.name} weights with infinite codes have no CUDA kernel")
    nan = NAN_BYTE[fmt.scale]
    scales = weight.scales
    if fmt.scale == "e4m3":
        scales = np.where(scales == 0xFF, np.uint8(nan), scales)
        if (scales & 0x80).any():
            raise ConfigError(f"{fmt.name} weights with negative scales have no CUDA kernel")
    n, k = weight.codes.shape
    whole = np.pad(np.isnan(values), ((0, 0), (0, -k % fmt.block)))
    is_nan = whole.reshape(n, -1, fmt.block).any(axis=-1) | (scales == nan)
    if not is_nan.any():
        return Quantized(weight.codes, scales, weight.tensor_scale)
    codes = np.where(np.repeat(is_nan, fmt.block, axis=1)[:, :k], np.uint8(0), weight.codes)
    return Quantized(codes, np.where(is_nan, np.uint8(nan), scales), weight.tensor_scale)
