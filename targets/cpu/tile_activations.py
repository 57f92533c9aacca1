"""Activations as AMX reads them: value * scale in bfloat16, tile after tile.

What `quantize` made for dot products, int8 and a float32 scale for each block, is brought into this
form at the start of a GEMM of many rows, once for all columns. What a chunk of rows needs of a
panel lies side by side: row tiles apart by all of K, a power of two, would share sets of the cache.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx
from lbcompiler.targets.cpu.gemm_tiles import TileGemm
from lbcompiler.targets.cpu.integer_products import Activations
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, cast, let, splat

LANES = 16
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight k's within a row: as tile_weights.py has them


@dataclass(frozen=True)
class TileRows:
    """codes int16 (panels, row tiles, depth, rows / 16, 16 * block): the bits of bfloat16."""

    activations: Activations
    codes: Any

    @classmethod
    def pack(cls, activations: Activations, m: Expr, gemm: TileGemm) -> "TileRows":
        """Emits the conversion of m rows, as many as a register tile has or more."""
        shape = (gemm.panels, tirx.ceildiv(m, gemm.height), gemm.depth, gemm.parts)
        rows = cls(activations, T.alloc_buffer((*shape, amx.ROWS * gemm.block), "int16"))

        def strip(panel: Expr, tile: Expr, part: Expr, first: Expr) -> None:
            with T.serial(gemm.count(panel)) as block:
                IRBuilder.name("block", block)
                with T.serial(amx.ROWS) as r:
                    value = rows._row(let(first + r), let(panel * gemm.depth + block))
                    lanes = at(r * gemm.block, gemm.block)
                    T.buffer_store(rows.codes, value, [panel, tile, block, part, lanes])

        gemm.each_strip(m, strip)
        return rows

    def first(self, panel: Expr, tile: Expr, part: int, block: Expr) -> Any:
        """The first element of a tile: rows 16 part and on of row tile `tile`, block of a panel."""
        return self.codes[panel, tile, block, part, 0]

    def _row(self, row: Expr, number: Expr) -> Expr:
        """A block of a row, in `ORDER`."""
        block = self.activations.block
        scale = bound(splat(self.activations.scale(row, number), "float32", LANES))
        halves = []
        for i in range(0, block, LANES):
            codes = self.activations.values[row, at(number * block + i, LANES)]
            value = bound(cast("float32", cast("int32", codes)) * scale)
            halves.append(tirx.reinterpret(f"int16x{2 * LANES}", value))
        order = [8 * i + k for i in range(block // 8) for k in ORDER]
        return tirx.Shuffle(halves, [2 * k + 1 for k in order])
