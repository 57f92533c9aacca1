"""How operands of the block-scaled `mma.sync` of sm_120a lie in memory: codes as the instruction
takes them, in steps of 32 bytes of K.

| kind | elements | k of a step | scales of a row and step |
|---|---|---|---|
| mxf4nvf4, 4X | E2M1, two a byte, the lower nibble first | 64 | four E4M3 |
| mxf4, 2X | E2M1 | 64 | two E8M0 |
| mxf8f6f4, 1X | E4M3, E5M2, E2M3, E3M2, one a byte in its lower bits | 32 | one E8M0 |

A tile is 16 rows of W by four steps. Lane 4 g + c holds of step s the registers j = 2 t + i: bytes
16 i + 4 c .. 16 i + 4 c + 3 of the step of row g + 8 t (PTX ISA, "Matrix Fragments for
mma.m16n8k64", operand B of two column tiles).

| bits | planes, uint8, T = ceil(N/16), S = ceil(K / 4 steps) | of a lane |
|---|---|---|
| 4, 8 | (T, S, 2048): step, lane | word j |
| 6 | (T, S, 1024): s / 2, lane | word 2 (s % 2) + t; i = 0, 1: lower, upper nibbles of its bytes |
|   | (T, S, 512): lane | word s: upper two bits of j at 2 j of its bytes |

Scales are (T, S, 16 rows, bytes of four steps). Activations are rows: codes (M, 128 S), scales (M,
4 S times those of a step); K is padded with zero codes under zero scale bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cuda.layout import LANES, ROWS, tiles

Array = NDArray[Any]
ROW = 128  # bytes of a row in a tile
STEP = 32
EIGHT_BIT = ("mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp6_e3m2")


@dataclass(frozen=True)
class Pair:
    """Two formats that one kind of the instruction multiplies."""

    weight: BlockFormat
    act: BlockFormat

    @property
    def kind(self) -> str:
        if self.weight.element.bits != 4:
            return "mxf8f6f4"
        return "mxf4nvf4" if self.weight.has_tensor_scale else "mxf4"

    @property
    def codes_of_byte(self) -> int:
        return 2 if self.weight.element.bits == 4 else 1

    @property
    def depth(self) -> int:
        """k's of a tile."""
        return ROW * self.codes_of_byte

    @property
    def step(self) -> int:
        """k's of an instruction."""
        return STEP * self.codes_of_byte

    @property
    def step_scales(self) -> int:
        """Scales of a row and step."""
        return self.step // self.weight.block

    @property
    def row_scales(self) -> int:
        """Bytes of a row's scales in a tile."""
        return self.depth // self.weight.block

    def depths(self, k: int) -> int:
        return -(-k // self.depth)

    @property
    def plane_bytes(self) -> tuple[int, ...]:
        return (1024, 512) if self.weight.element.bits == 6 else (2048,)

    @property
    def scale_bytes(self) -> int:
        """Of a tile."""
        return ROWS * self.row_scales

    @property
    def tile_bytes(self) -> int:
        return sum(self.plane_bytes) + self.scale_bytes


def pair_of(weight: BlockFormat, act: BlockFormat | None) -> Pair | None:
    """The pair, if there is an instruction for it."""
    if act is None:
        return None
    weight = weight.plain or weight  # a tensor scale comes behind the sums
    names = (weight.name, act.name)
    if names in (("nvfp4", "nvfp4"), ("mxfp4", "mxfp4")) or all(n in EIGHT_BIT for n in names):
        return Pair(weight, act)
    return None


def rows_of_bytes(codes: Array, pair: Pair) -> Array:
    """(M, K) codes -> (M, 128 S) bytes."""
    m, k = codes.shape
    whole = np.zeros((m, pair.depths(k) * pair.depth), np.uint8)
    whole[:, :k] = codes
    if pair.codes_of_byte == 1:
        return whole
    return np.asarray(whole[:, 0::2] | whole[:, 1::2] << 4)


def rows_of_scales(scales: Array, pair: Pair, k: int) -> Array:
    """(M, blocks) bytes -> (M, S times those of a tile), zeros behind."""
    whole = np.zeros((len(scales), pair.depths(k) * pair.row_scales), np.uint8)
    whole[:, : scales.shape[1]] = scales
    return whole


def pack_codes(codes: Array, pair: Pair) -> tuple[Array, ...]:
    """(N, K) codes -> the planes of the table above."""
    rows = rows_of_bytes(codes, pair)
    n, size = rows.shape
    whole = np.zeros((tiles(n) * ROWS, size), np.uint8)
    whole[:n] = rows
    parts = whole.reshape(tiles(n), 2, 8, size // ROW, 4, 2, 4, 4)  # T t g S s i c b
    ordered = np.ascontiguousarray(parts.transpose(0, 3, 4, 2, 6, 1, 5, 7))  # T S s g c t i b
    count, depth = ordered.shape[:2]
    if pair.weight.element.bits != 6:
        return (ordered.reshape(count, depth, 2048),)
    lanes = ordered.reshape(count, depth, 4, LANES, 2, 2, 4)  # s lane t i b
    low = lanes[..., 0, :] & 15 | lanes[..., 1, :] << 4  # s lane t b
    halves = low.reshape(count, depth, 2, 2, LANES, 2, 4).transpose(0, 1, 2, 4, 3, 5, 6)
    upper = np.zeros((count, depth, 4, LANES, 4), np.uint8)
    for t in (0, 1):
        for i in (0, 1):
            upper |= (lanes[..., t, i, :] >> 4) << np.uint8(2 * (2 * t + i))
    return (
        np.ascontiguousarray(halves).reshape(count, depth, 1024),
        np.ascontiguousarray(upper.transpose(0, 1, 3, 2, 4)).reshape(count, depth, 512),
    )


def unpack_codes(planes: tuple[Array, ...], n: int, k: int, pair: Pair) -> Array:
    """The inverse of `pack_codes`: (n, k) codes."""
    count, depth = planes[0].shape[:2]
    if pair.weight.element.bits == 6:
        halves = planes[0].reshape(count, depth, 2, LANES, 2, 2, 4).transpose(0, 1, 2, 4, 3, 5, 6)
        low = halves.reshape(count, depth, 4, LANES, 2, 4)
        upper = planes[1].reshape(count, depth, LANES, 4, 4).transpose(0, 1, 3, 2, 4)
        lanes = np.empty((count, depth, 4, LANES, 2, 2, 4), np.uint8)
        for t in (0, 1):
            for i in (0, 1):
                nibbles = low[..., t, :] >> np.uint8(4 * i) & 15
                lanes[..., t, i, :] = nibbles | (upper >> np.uint8(2 * (2 * t + i)) & 3) << 4
        ordered = lanes.reshape(count, depth, 4, 8, 4, 2, 2, 4)
    else:
        ordered = planes[0].reshape(count, depth, 4, 8, 4, 2, 2, 4)
    rows = ordered.transpose(0, 5, 3, 1, 2, 6, 4, 7).reshape(count * ROWS, depth * ROW)
    if pair.codes_of_byte == 1:
        return np.ascontiguousarray(rows[:n, :k])
    codes = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)
    return np.ascontiguousarray(codes[:n, :k])


def pack_scales(scales: Array, pair: Pair, k: int) -> Array:
    """(N, blocks) bytes -> (T, S, bytes of a tile)."""
    rows = rows_of_scales(scales, pair, k)
    whole = np.zeros((tiles(len(rows)) * ROWS, rows.shape[1]), np.uint8)
    whole[: len(rows)] = rows
    parts = whole.reshape(tiles(len(rows)), ROWS, pair.depths(k), pair.row_scales)
    return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(
        tiles(len(rows)), pair.depths(k), pair.scale_bytes
    )
