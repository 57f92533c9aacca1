"""The exact GEMM of sm_80 and later: weights decoded to bfloat16 in registers, `mma.sync`.

    block (BM rows of x, BN of W), each warp a part of both
        ring of `stages` in shared memory: x (BM, 64) bfloat16, packed W (BN, 64) as it is
        for tile of 64 k's
            cp.async of the tile `stages` - 1 ahead, 16 bytes a thread and copy
            for step of 16 k's
                x: ldmatrix      W: a shift, a mask, two products a pair      mma.sync
        y = epilogue(sums), from registers

Rows of x in shared memory are 128 bytes; piece c of row r lies at c ^ (r % 8), so that neither
copies nor `ldmatrix` meet a bank twice. M is symbolic: rows beyond it are zeros and not stored.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Expr,
    Registers,
    Shared,
    barrier,
    commit_copies,
    copy_async,
    int64,
    launch,
    let,
    load_matrices,
    multiply_add,
    shared_out,
    wait_for_copies,
)
from lbcompiler.targets.cuda.layout import DEPTH, ROWS, STEPS, depths
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.split import Parts, Span
from lbcompiler.targets.cuda.weights import CHUNK, Weights

ROW_BYTES = DEPTH * 2  # of x, in one tile
PIECES = ROW_BYTES // CHUNK


@dataclass(frozen=True)
class Tiling:
    """A block's share of y, (rows, columns), how its warps divide it, and the depth of its ring."""

    rows: int
    columns: int
    row_warps: int
    column_warps: int
    stages: int

    @property
    def threads(self) -> int:
        return self.row_warps * self.column_warps * WARP

    @property
    def warp_rows(self) -> int:
        return self.rows // self.row_warps

    @property
    def warp_tiles(self) -> int:
        """Tiles of 16 columns of a warp."""
        return self.columns // self.column_warps // ROWS

    @property
    def column_tiles(self) -> int:
        return self.columns // ROWS

    def stage_bytes(self, row_bytes: int, tile_bytes: int) -> int:
        """Shared memory of one stage, for the bytes of a row of x and of a tile of W."""
        return self.rows * row_bytes + self.column_tiles * tile_bytes

    def shared_bytes(self, row_bytes: int, tile_bytes: int) -> int:
        return self.stages * self.stage_bytes(row_bytes, tile_bytes)


@dataclass(frozen=True)
class Activations:
    """x as a kernel's argument: `parts` rows of bfloat16 (as uint16), whose sum a row is."""

    x: Any
    m: Expr
    parts: int

    @classmethod
    def declare(cls, m: Expr, k: int, parts: int) -> "Activations":
        shape = (m, parts, depths(k) * DEPTH)
        return cls(T.arg("x", T.buffer(shape, "uint16")), m, parts)

    @property
    def row_bytes(self) -> int:
        """Of a row in a stage."""
        return self.parts * ROW_BYTES

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
        """Start to copy (rows, 64) of each part to `offset`; rows beyond the last are zeros."""
        for part in range(self.parts):
            behind = offset + part * rows * ROW_BYTES

            def one(index: Expr, part: int = part, behind: Expr = behind) -> None:
                row, piece = let(index // PIECES), let(index % PIECES)
                is_valid = int64(first) + int64(row) < self.m
                kept = tirx.Select(is_valid, int64(first) + int64(row), int64(0))
                at = [kept, int64(part), int64(depth) * DEPTH + int64(piece) * (CHUNK // 2)]
                target = shared.at(behind + row_piece(row, piece))
                copy_async(target, self.x.ptr_to(at), is_valid)

            shared_out(rows * PIECES, thread, threads, one)


def row_piece(row: Expr, piece: Expr) -> Expr:
    """Where 16 bytes of a row of x lie in a stage."""
    return row * ROW_BYTES + (piece ^ row % 8) * CHUNK


def emit_gemm(
    tiling: Tiling, x: Activations, weights: Weights, output: Output, parts: Parts | None = None
) -> None:
    """The launch, within a kernel's PrimFunc; with `parts` of up to as many rows as these have."""
    with launch(grid_of(tiling, x, weights, parts), tiling.threads) as (place, thread):
        Block(tiling, x, weights, output, parts, place, thread).emit()


def grid_of(tiling: Tiling, x: Any, weights: Any, parts: Parts | None) -> list[Expr]:
    grid = [(x.m + (tiling.rows - 1)) // tiling.rows, -(-weights.n // tiling.columns)]
    return grid if parts is None else [*grid, parts.count]


class Block:
    def __init__(
        self,
        tiling: Tiling,
        x: Any,
        weights: Any,
        output: Output,
        parts: Parts | None,
        place: list[Expr],
        thread: Expr,
    ) -> None:
        self.tiling, self.x, self.weights = tiling, x, weights
        self.output = output if parts is None else parts.output(output, place[2])
        self.span = Span.of(weights.depth_count, 1 if parts is None else parts.count, place[-1])
        self.thread = thread
        self.lane, warp = let(thread % WARP), let(thread // WARP)
        self.first_row = let(place[0] * tiling.rows)
        self.first_tile = let(place[1] * tiling.column_tiles)
        self.warp_row = let(warp // tiling.column_warps * tiling.warp_rows)
        self.warp_tile = let(warp % tiling.column_warps * tiling.warp_tiles)
        self.stage_bytes = tiling.stage_bytes(x.row_bytes, weights.tile_bytes)
        self.shared = Shared(tiling.stages * self.stage_bytes)
        self.row_tiles = tiling.warp_rows // 16
        self.sums = Registers(self.row_tiles * tiling.warp_tiles * 8, "float32")

    def emit(self) -> None:
        tiling, span = self.tiling, self.span
        self.sums.clear()
        for stage in range(tiling.stages - 1):
            with T.If(span.first + stage < span.end), T.Then():
                self._copy(tirx.const(stage * self.stage_bytes, "int32"), span.first + stage)
            commit_copies()
        with T.serial(span.end - span.first) as depth:
            wait_for_copies(tiling.stages - 2)
            barrier()
            ahead = depth + (tiling.stages - 1)
            with T.If(span.first + ahead < span.end), T.Then():
                self._copy(let(ahead % tiling.stages * self.stage_bytes), span.first + ahead)
            commit_copies()
            self._multiply(let(depth % tiling.stages * self.stage_bytes))
        self._store()

    def _copy(self, offset: Expr, depth: Expr) -> None:
        tiling, threads = self.tiling, self.tiling.threads
        self.x.copy(self.shared, offset, tiling.rows, self.first_row, depth, self.thread, threads)
        behind = offset + tiling.rows * self.x.row_bytes
        self.weights.copy(
            self.shared,
            behind,
            tiling.column_tiles,
            self.first_tile,
            depth,
            self.thread,
            threads,
        )

    def _multiply(self, offset: Expr) -> None:
        tiling = self.tiling
        behind = offset + tiling.rows * self.x.row_bytes
        columns = [
            self.weights.load(
                self.shared, behind, tiling.column_tiles, self.warp_tile + tile, self.lane
            )
            for tile in range(tiling.warp_tiles)
        ]
        scales = [tile.decoded_scales() for tile in columns]
        for step in range(STEPS):
            fragments = [
                tile.fragment(step, held) for tile, held in zip(columns, scales, strict=True)
            ]
            for part in range(self.x.parts):
                for row_tile in range(self.row_tiles):
                    a = Registers(4, "uint32")
                    row = self.warp_row + row_tile * 16 + self.lane % 16
                    at = row_piece(row + part * tiling.rows, step * 2 + self.lane // 16)
                    load_matrices(a, 0, 4, self.shared.at(offset + at))
                    for tile, b in enumerate(fragments):
                        for t in (0, 1):
                            slot = ((row_tile * tiling.warp_tiles + tile) * 2 + t) * 4
                            multiply_add(
                                self.sums, slot, [a[i] for i in range(4)], b[2 * t : 2 * t + 2]
                            )

    def _store(self) -> None:
        for row_tile in range(self.row_tiles):
            for half in (0, 1):
                row = let(
                    self.first_row + self.warp_row + row_tile * 16 + half * 8 + self.lane // 4
                )
                with T.If(int64(row) < self.x.m), T.Then():
                    scale = self.output.row_scale(row)
                    for tile in range(self.tiling.warp_tiles):
                        for t in (0, 1):
                            slot = ((row_tile * self.tiling.warp_tiles + tile) * 2 + t) * 4
                            column = (self.first_tile + self.warp_tile + tile) * ROWS + t * 8
                            values = [self.sums[slot + half * 2 + i] for i in (0, 1)]
                            place = let(column + self.lane % 4 * 2)
                            self.output.store(row, place, values, scale)
