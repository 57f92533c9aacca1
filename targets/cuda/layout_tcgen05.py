"""How operands of the block-scaled `tcgen05.mma` of sm_100a lie in memory.

Codes are rows of bytes, of W (N, 128 S) as of x (M, 128 S): those that layout_native.py makes of
activations. TMA puts 128 bytes of each row into a tile and swizzles them on the way.

Scale bytes lie as tensor memory wants them, so that no thread moves any: 512 bytes hold 128 rows by
four blocks (PTX ISA, "tcgen05.mma .block_scale", "Scale Factor Layout").

    byte 16 (r % 32) + 4 (r / 32) + j      of row r and block j

`tcgen05.cp .32x128b.warpx4` makes lane r % 32 of four columns of it, one for each 32 rows, and
copies these lanes three times. Groups of 128 rows follow one another, within each the blocks:

| | shape |
|---|---|
| scales of W | uint8 (ceil(N / 128), S A, 512) |
| scales of x | uint8 (ceil(M / 128), S A, 512) |

A is 4, 2 or 1 for NVFP4, MXFP4 and MXFP8: a tile's scales of a row are 4 A. K is padded with zero
codes under zero scale bytes; what rows beyond the last have is never stored by a kernel.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cuda.layout_native import Pair, rows_of_scales
from lbcompiler.targets.cuda.layout_native import pair_of as pair_of_mma

Array = NDArray[Any]
GROUP = 128  # rows
LANES = 32
COLUMNS = GROUP // LANES
ATOM_BLOCKS = 4
ATOM = GROUP * ATOM_BLOCKS  # bytes


def pair_of(weight: BlockFormat, act: BlockFormat | None) -> Pair | None:
    """The pair, if there is an instruction for it. Codes of 6 bits would lie in groups of 16 bytes,
    which nothing here makes.
    """
    pair = pair_of_mma(weight, act)
    if pair is None or 6 in (pair.weight.element.bits, pair.act.element.bits):
        return None
    return pair


def atoms(pair: Pair) -> int:
    """Pieces of 512 bytes for 128 rows of a tile."""
    return pair.row_scales // ATOM_BLOCKS


def pack_scales(scales: Array, pair: Pair, k: int) -> Array:
    """(R, blocks) bytes -> (ceil(R / 128), S A, 512), zeros behind."""
    rows = rows_of_scales(scales, pair, k)
    count, size = -(-len(rows) // GROUP), rows.shape[1]
    whole = np.zeros((count * GROUP, size), np.uint8)
    whole[: len(rows)] = rows
    parts = whole.reshape(count, COLUMNS, LANES, size // ATOM_BLOCKS, ATOM_BLOCKS)
    return np.ascontiguousarray(parts.transpose(0, 3, 2, 1, 4)).reshape(count, -1, ATOM)


def unpack_scales(packed: Array, rows: int, blocks: int) -> Array:
    """The inverse: (rows, blocks)."""
    count, pieces, _ = packed.shape
    parts = packed.reshape(count, pieces, LANES, COLUMNS, ATOM_BLOCKS).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(parts.reshape(count * GROUP, -1)[:rows, :blocks])
