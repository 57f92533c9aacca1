"""Activations as AMX reads them: value * scale in bfloat16, tile after tile.

What `quantize` made for dot products, int8 and a float32 scale for each block, is brought into this
form at the start of a GEMM of many rows, once for all columns.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx
from lbcompiler.targets.cpu.integer_products import Activations
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, cast, let, splat

LANES = 16
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight k's within a row: as tile_weights.py has them


@dataclass(frozen=True)
class TileRows:
    """codes int16 (row tiles, blocks, rows / 16, 16 * block): the bits of bfloat16.

    `blocks` is even, the last of them zeros where K has one less.
    """

    activations: Activations
    blocks: int
    height: int
    codes: Any

    @classmethod
    def pack(cls, activations: Activations, m: Expr, blocks: int, height: int) -> "TileRows":
        """Emits the conversion of m rows, which are `height` or more, `height` rows a tile."""
        count, even = tirx.ceildiv(m, height), blocks + blocks % 2
        shape = (count, even, height // amx.ROWS, amx.ROWS * activations.block)
        rows = cls(activations, blocks, height, T.alloc_buffer(shape, "int16"))
        with T.parallel(count * height) as number:
            IRBuilder.name("row", number)
            tile, r = let(number // height), let(number % height)
            row = let(tirx.min(tile * height, m - height) + r)
            rows._pack_row(tile, r, row)
        return rows

    def first(self, tile: Expr, part: int, block: Expr) -> Any:
        """The first element of a tile: rows 16 part and on of row tile `tile`."""
        return self.codes[tile, block, part, 0]

    def _pack_row(self, tile: Expr, r: Expr, row: Expr) -> None:
        block = self.activations.block

        def keep(number: Expr, value: Expr) -> None:
            lanes = at(r % amx.ROWS * block, block)
            T.buffer_store(self.codes, value, [tile, number, r // amx.ROWS, lanes])

        with T.serial(self.blocks) as number:
            IRBuilder.name("block", number)
            scale = bound(splat(self.activations.scale(row, number), "float32", LANES))
            halves = []
            for i in range(0, block, LANES):
                codes = self.activations.values[row, at(number * block + i, LANES)]
                value = bound(cast("float32", cast("int32", codes)) * scale)
                halves.append(tirx.reinterpret(f"int16x{2 * LANES}", value))
            order = [8 * i + k for i in range(block // 8) for k in ORDER]
            keep(number, tirx.Shuffle(halves, [2 * k + 1 for k in order]))
        if self.blocks % 2:
            keep(tirx.const(self.blocks, "int64"), splat(0, "int16", block))
