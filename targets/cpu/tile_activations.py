"""Activations as AMX reads them: value * scale in bfloat16, tile after tile.

What `quantize` made for dot products, int8 and a float32 scale for each block, is brought into this
form at the start of a GEMM of many rows, once for all columns. What a chunk of rows needs of a
panel lies side by side: row tiles apart by all of K, a power of two, would share sets of the cache.
"""

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx
from lbcompiler.targets.cpu.gemm_tiles import Rows, Strip, TileGemm
from lbcompiler.targets.cpu.integer_products import Activations
from lbcompiler.targets.cpu.intrinsics import Expr, at, bound, cast, let, splat

LANES = 16
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of eight k's within a row: as tile_weights.py has them


def packed(activations: Activations, m: Expr, gemm: TileGemm) -> Rows:
    """Emits the conversion of m rows, as many as a register tile has or more, to int16."""

    def emit(codes: Any, strip: Strip) -> None:
        with T.serial(gemm.count(strip.panel)) as block:
            IRBuilder.name("block", block)
            with T.serial(amx.ROWS) as r:
                number = let(strip.panel * gemm.depth + block)
                value = _row(activations, let(strip.first + r), number)
                lanes = at(r * gemm.block, gemm.block)
                T.buffer_store(codes, value, [strip.panel, strip.tile, block, strip.part, lanes])

    return gemm.pack(m, "int16", amx.ROWS * gemm.block, emit)


def _row(activations: Activations, row: Expr, number: Expr) -> Expr:
    """A block of a row, in `ORDER`."""
    block = activations.block
    scale = bound(splat(activations.scale(row, number), "float32", LANES))
    halves = []
    for i in range(0, block, LANES):
        codes = activations.values[row, at(number * block + i, LANES)]
        value = bound(cast("float32", cast("int32", codes)) * scale)
        halves.append(tirx.reinterpret(f"int16x{2 * LANES}", value))
    order = [8 * i + k for i in range(block // 8) for k in ORDER]
    return tirx.Shuffle(halves, [2 * k + 1 for k in order])
