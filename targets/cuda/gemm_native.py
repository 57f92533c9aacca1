"""The block-scaled GEMM of sm_120a: codes and scales straight into `mma.sync .. block_scale`.

It is the loop of gemm_mma.py, with rows of codes in place of bfloat16, scales beside them, and
nothing to decode; MXFP6 alone is put together from its two planes. The tensor cores multiply by the
scales exactly and sum in float32; tensor scales follow in the epilogue.

The scale of row g of operand A is taken from lane 4 g, that of row g + 8 from lane 4 g + 1, that of
column g of B from lane 4 g, the lowest bytes of a register (PTX ISA, "Block scaling for mma.sync",
byte-id and thread-id 0).
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.gemm_mma import Block, Tiling, grid_of, row_piece
from lbcompiler.targets.cuda.intrinsics import (
    Device,
    Expr,
    Registers,
    Shared,
    bound,
    copy_async,
    copy_few_async,
    int64,
    launch,
    let,
    load_matrices,
    load_word,
    load_words,
    shared_out,
    uint32,
)
from lbcompiler.targets.cuda.layout import tiles
from lbcompiler.targets.cuda.layout_native import ROW, Pair
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.split import Parts
from lbcompiler.targets.cuda.weights import CHUNK, Tiles

PIECES = ROW // CHUNK
STEPS = 4


@dataclass(frozen=True)
class NativeRows:
    """x as codes uint8 (M, 128 S) and scales uint8 (M, ..)."""

    pair: Pair
    codes: Any
    scales: Any
    m: Expr

    @classmethod
    def declare(cls, pair: Pair, m: Expr, k: int) -> "NativeRows":
        depth = pair.depths(k)
        codes = T.arg("x", T.buffer((m, depth * ROW), "uint8"))
        scales = T.arg("x_scales", T.buffer((m, depth * pair.row_scales), "uint8"))
        return cls(pair, codes, scales, m)

    @property
    def row_bytes(self) -> int:
        """Of a row in a stage."""
        return ROW + self.pair.row_scales

    def copy(
        self,
        shared: Shared,
        offset: Expr,
        rows: int,
        first: Expr,
        depth: Expr,
        thread: Expr,
        threads: int,
    ) -> None:
        """Start to copy the rows' codes to `offset`, and their scales behind."""

        def one_row(row: Expr) -> tuple[Expr, Expr]:
            is_valid = int64(first) + int64(row) < self.m
            return is_valid, tirx.Select(is_valid, int64(first) + int64(row), int64(0))

        def codes(index: Expr) -> None:
            row, piece = let(index // PIECES), let(index % PIECES)
            is_valid, kept = one_row(row)
            source = self.codes.ptr_to([kept, int64(depth) * ROW + int64(piece) * CHUNK])
            copy_async(shared.at(offset + row_piece(row, piece)), source, is_valid)

        def scales(row: Expr) -> None:
            size = self.pair.row_scales
            is_valid, kept = one_row(row)
            source = self.scales.ptr_to([kept, int64(depth) * size])
            copy_few_async(shared.at(offset + rows * ROW + row * size), source, size, is_valid)

        shared_out(rows * PIECES, thread, threads, codes)
        shared_out(rows, thread, threads, scales)


@dataclass(frozen=True)
class NativeWeights(Tiles):
    """W (n, k) as layout_native.py has it."""

    pair: Pair
    n: int
    k: int
    planes: tuple[Any, ...]
    scales: Any

    @classmethod
    def declare(cls, pair: Pair, n: int, k: int) -> "NativeWeights":
        shape = (tiles(n), pair.depths(k))
        planes = tuple(
            T.arg(f"w{i}", T.buffer((*shape, size), "uint8"))
            for i, size in enumerate(pair.plane_bytes)
        )
        scales = T.arg("w_scales", T.buffer((*shape, pair.scale_bytes), "uint8"))
        return cls(pair, n, k, planes, scales)

    @property
    def parts(self) -> list[tuple[Any, int]]:
        sizes = [*self.pair.plane_bytes, self.pair.scale_bytes]
        return list(zip([*self.planes, self.scales], sizes, strict=True))

    @property
    def depth_count(self) -> int:
        return self.pair.depths(self.k)


class NativeBlock(Block):
    """A block of threads; what it multiplies with is all that is its own."""

    def __init__(self, pair: Pair, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pair = pair

    def _multiply(self, offset: Expr) -> None:
        tiling, pair = self.tiling, self.pair
        behind = let(offset + tiling.rows * self.x.row_bytes)
        upper = self._upper_bits(behind) if pair.weight.element.bits == 6 else None
        low: list[Registers] = []
        for step in range(STEPS):
            if upper is None:
                columns = [self._words(behind, tile, step, 2048) for tile in self._tiles()]
            else:
                if step % 2 == 0:
                    low = [self._words(behind, tile, step // 2, 1024) for tile in self._tiles()]
                columns = [
                    _six_bits(words, high, step) for words, high in zip(low, upper, strict=True)
                ]
            scales = [
                [self._column_scale(behind, tile, t, step) for t in (0, 1)]
                for tile in self._tiles()
            ]
            for row_tile in range(self.row_tiles):
                a = Registers(4, "uint32")
                row = self.warp_row + row_tile * 16 + self.lane % 16
                at = row_piece(row, step * 2 + self.lane // 16)
                load_matrices(a, 0, 4, self.shared.at(offset + at))
                row_scale = self._row_scale(offset, row_tile, step)
                for tile, b in enumerate(columns):
                    for t in (0, 1):
                        slot = ((row_tile * tiling.warp_tiles + tile) * 2 + t) * 4
                        _product(pair).run(
                            self.sums.pointer(slot),
                            a.pointer(),
                            b.pointer(2 * t),
                            row_scale,
                            scales[tile][t],
                        )

    def _tiles(self) -> range:
        return range(self.tiling.warp_tiles)

    def _words(self, behind: Expr, tile: int, place: int, size: int) -> Registers:
        """16 bytes of a lane, the `place`-th of the first plane."""
        words = Registers(4, "uint32")
        at = behind + (self.warp_tile + tile) * size + place * 512 + self.lane * 16
        load_words(words, 0, self.shared.at(at), 16)
        return words

    def _upper_bits(self, behind: Expr) -> list[Registers]:
        """The words of each tile in the second plane of MXFP6."""
        first = behind + self.tiling.column_tiles * 1024
        return [self._words(first, tile, 0, 512) for tile in self._tiles()]

    def _column_scale(self, behind: Expr, tile: int, t: int, step: int) -> Expr:
        pair = self.pair
        first = behind + self.tiling.column_tiles * sum(pair.plane_bytes)
        row = (self.warp_tile + tile) * 16 + t * 8 + self.lane // 4
        at = first + row * pair.row_scales + step * pair.step_scales
        return bound(load_word(self.shared.at(at), pair.step_scales), "uint32")

    def _row_scale(self, offset: Expr, row_tile: int, step: int) -> Expr:
        pair = self.pair
        row = self.warp_row + row_tile * 16 + self.lane // 4 + self.lane % 2 * 8
        at = offset + self.tiling.rows * ROW + row * pair.row_scales + step * pair.step_scales
        return bound(load_word(self.shared.at(at), pair.step_scales), "uint32")


def _six_bits(low: Registers, upper: Registers, step: int) -> Registers:
    """Registers j = 2 t + i of a step, one code a byte."""
    out = Registers(4, "uint32")
    for j in range(4):
        t, i = divmod(j, 2)
        nibbles = low[2 * (step % 2) + t] >> uint32(4 * i) & uint32(0x0F0F0F0F)
        out[j] = nibbles | (upper[step] >> uint32(2 * j) & uint32(0x03030303)) << uint32(4)
    return out


def _product(pair: Pair) -> Device:
    """d += (A scaled) (B scaled), by one instruction."""
    scale = "ue4m3" if pair.weight.has_tensor_scale else "ue8m0"
    a, b = pair.act.element.name, pair.weight.element.name
    name = f"lb_block_scaled_{a}_{b}_{scale}"
    code = (
        f"mma.sync.aligned.kind::{pair.kind}.block_scale.scale_vec::{pair.step_scales}X."
        f"m16n8k{pair.step}.row.col.f32.{a}.{b}.f32.{scale} "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, "
        "{%10}, {0, 0}, {%11}, {0, 0};"
    )
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(4))
    inputs = [*(f"a[{i}]" for i in range(4)), "b[0]", "b[1]", "sa", "sb"]
    text = (
        f"__device__ __forceinline__ void {name}(float* d, const unsigned* a, const unsigned* b, "
        f'unsigned sa, unsigned sb) {{ asm volatile("{code}" : {outputs} : '
        + ", ".join(f'"r"({x})' for x in inputs)
        + "); }"
    )
    return Device(name, text)


def emit_native(
    tiling: Tiling,
    x: NativeRows,
    weights: NativeWeights,
    output: Output,
    parts: Parts | None = None,
) -> None:
    """The launch, within a kernel's PrimFunc; with `parts` of up to as many rows as these have."""
    with launch(grid_of(tiling, x, weights, parts), tiling.threads) as (place, thread):
        NativeBlock(x.pair, tiling, x, weights, output, parts, place, thread).emit()
