"""The exact GEMM of sm_90a: y^T = W x^T by `wgmma`, weights decoded in registers as operand A.

    a block a multiprocessor, for every `blocks`-th share of y (128 columns, `tokens` rows)
        a producer warp: for tile of 64 k's, into a ring of `stages`
            TMA of x (tokens, 64), swizzled by 128 bytes; bulk copies of packed W, 8 tiles
            full[stage] counts the bytes
        two consumer warpgroups of 64 columns each:
            wait full[stage]; each warp decodes its tile of 16 rows: four steps of operand A
            4 wgmma m64 n(tokens) k16, x from shared memory
            arrive at empty[stage]
        y = epilogue(sums), from registers; the producer fills the ring for the next share

A packed tile is in the order of operand A already (layout.py), so weights pass from shared memory
to registers once. While one warpgroup decodes the other multiplies. Rows beyond M are zeros that
TMA fills in.

Shares are numbered down `group` of them, then to the right: blocks that run at the same time read
few rows of x and few columns of W, which the L2 cache then has.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.asynchronous import (
    ARRIVE,
    COPY_BULK,
    COPY_TILE,
    DESCRIPTOR,
    EXPECT,
    FENCE_INIT,
    INIT,
    WAIT,
    WGMMA_COMMIT,
    WGMMA_FENCE,
    WGMMA_WAIT,
    fewer_registers,
    more_registers,
    shared_address,
    tensor_map,
    wgmma,
)
from lbcompiler.targets.cuda.gemm_mma import ROW_BYTES, Activations
from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Expr,
    Registers,
    Shared,
    barrier,
    bound,
    int32,
    int64,
    launch,
    let,
)
from lbcompiler.targets.cuda.layout import DEPTH, ROWS, STEPS, depths, tile_bytes, tiles
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.weights import Weights

COLUMN_TILES = 8  # of a block: one a consumer warp
CONSUMERS = COLUMN_TILES  # warps
WARPGROUP = 4
THREADS = (CONSUMERS + WARPGROUP) * WARP
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 232, 40  # of 65536, for 256 and 128 threads
ALIGN = 1024  # of a swizzled tile
BARRIERS = 128  # bytes before the ring


@dataclass(frozen=True)
class Wide:
    """`tokens` (a multiple of 8 up to 256) rows of x at once, over a ring of `stages`, in at most
    `blocks` blocks; shares of y are taken in groups of `group` below one another.
    """

    tokens: int
    stages: int
    blocks: int
    group: int

    def stage_bytes(self, row_bytes: int, weight_bytes: int) -> int:
        size = self.tokens * row_bytes + COLUMN_TILES * weight_bytes
        return -(-size // ALIGN) * ALIGN

    def shared_bytes(self, row_bytes: int, weight_bytes: int) -> int:
        return ALIGN + self.stages * self.stage_bytes(row_bytes, weight_bytes)


def emit_wide(wide: Wide, x: Activations, weights: Weights, output: Output) -> None:
    """The launch, within a kernel's PrimFunc."""
    shape = [x.m, x.parts, depths(weights.k) * DEPTH]
    x_map = tensor_map(x.x, shape, [wide.tokens, 1, DEPTH])
    shares = _Shares((x.m + (wide.tokens - 1)) // wide.tokens, weights, wide)
    with launch([shares.blocks], THREADS) as ((block,), thread):
        _Block(wide, x, weights, output, x_map, shares, block, thread).emit()


class _Shares:
    """Of y: `below` one another (int64), and `beside`; numbered by groups."""

    def __init__(self, below: Expr, weights: Weights, wide: Wide) -> None:
        self.below, self.beside = below, -(-tiles(weights.n) // COLUMN_TILES)
        self.group = wide.group
        self.blocks = tirx.min(below * self.beside, int64(wide.blocks))

    def count(self, block: Expr) -> Expr:
        """int32: how many a block has."""
        rest = self.below * self.beside - int64(block)
        return bound(int32(tirx.truncdiv(rest + (self.blocks - 1), self.blocks)), "int32")

    def place(self, block: Expr, turn: Expr) -> tuple[Expr, Expr]:
        """(row, column) of a block's share of that number, int32."""
        number = let(block + turn * int32(self.blocks))
        of_group = self.group * self.beside
        first = let(number // of_group * self.group)
        height = tirx.min(int32(self.below) - first, tirx.const(self.group, "int32"))
        column = bound(tirx.truncdiv(number % of_group, height), "int32")
        return bound(first + (number % of_group - column * height), "int32"), column


class _Block:
    def __init__(
        self,
        wide: Wide,
        x: Activations,
        weights: Weights,
        output: Output,
        x_map: Any,
        shares: _Shares,
        block: Expr,
        thread: Expr,
    ) -> None:
        self.wide, self.x, self.weights, self.output, self.x_map = wide, x, weights, output, x_map
        self.shares, self.block = shares, block
        self.thread, self.lane, self.warp = thread, let(thread % WARP), let(thread // WARP)
        self.x_bytes = wide.tokens * x.row_bytes
        self.stage_bytes = wide.stage_bytes(x.row_bytes, weights.tile_bytes)
        size = wide.shared_bytes(x.row_bytes, weights.tile_bytes)
        self.shared = Shared(size, ALIGN)
        self.base = bound(shared_address(self.shared.at(0)), "uint32")

    def _full(self, stage: Expr) -> Expr:
        return self.base + tirx.Cast("uint32", stage * 16)

    def _empty(self, stage: Expr) -> Expr:
        return self._full(stage) + tirx.const(8, "uint32")

    def _address(self, offset: Expr) -> Expr:
        return self.base + tirx.Cast("uint32", offset)

    def _stage(self, stage: Expr) -> Expr:
        """Offset in shared memory; barriers lie before the ring."""
        return let(stage * self.stage_bytes + ALIGN)

    def emit(self) -> None:
        with T.If(tirx.EQ(self.thread, 0)), T.Then():
            for stage in range(self.wide.stages):
                INIT.run(self._full(tirx.const(stage, "int32")), 1)
                INIT.run(self._empty(tirx.const(stage, "int32")), CONSUMERS)
            FENCE_INIT.run()
        barrier()
        with T.If(self.warp >= CONSUMERS):
            with T.Then():
                fewer_registers(PRODUCER_REGISTERS)
                with T.If(tirx.EQ(self.thread, CONSUMERS * WARP)), T.Then():
                    self._each_share(self._produce)
            with T.Else():
                more_registers(CONSUMER_REGISTERS)
                self.sums = Registers(self.wide.tokens // 2, "float32")
                self._each_share(self._consume)

    def _each_share(self, work: Callable[[Expr, Expr, Registers], None]) -> None:
        """`work` of the first row, the first tile of columns, and the number of tiles of 64 k's
        that went through the ring so far: its stage and the parity of its barriers follow from it.
        """
        passed = Registers(1, "int32")
        passed.clear()
        with T.serial(self.shares.count(self.block)) as turn:
            row, column = self.shares.place(self.block, turn)
            work(row * self.wide.tokens, column * COLUMN_TILES, passed)

    def _produce(self, first_row: Expr, first_tile: Expr, passed: Registers) -> None:
        """One thread starts all copies."""
        wide, stages = self.wide, self.wide.stages
        rest = tiles(self.weights.n) - first_tile
        held = bound(tirx.Min(rest, tirx.const(COLUMN_TILES, "int32")), "int32")
        with T.serial(depths(self.weights.k)) as depth:
            stage, turn = let(passed[0] % stages), let(passed[0] // stages)
            passed[0] = passed[0] + 1
            full, offset = self._full(stage), self._stage(stage)
            WAIT.run(self._empty(stage), (turn + 1) % 2)
            EXPECT.run(full, self.x_bytes + held * tile_bytes(self.weights.fmt))
            for part in range(self.x.parts):
                target = self._address(offset + part * wide.tokens * ROW_BYTES)
                at = (depth * DEPTH, part, first_row)
                COPY_TILE.run(target, T.address_of(self.x_map), *at, full)
            with T.serial(held) as tile:
                behind = offset + self.x_bytes
                for buffer, size in self.weights.parts:
                    place = [int64(first_tile + tile), int64(depth), int64(0)]
                    target = self._address(behind + tile * size)
                    COPY_BULK.run(target, buffer.ptr_to(place), size, full)
                    behind = behind + COLUMN_TILES * size

    def _consume(self, first_row: Expr, first_tile: Expr, passed: Registers) -> None:
        wide, stages = self.wide, self.wide.stages
        self.sums.clear()
        a = Registers(STEPS * 4, "uint32")
        with T.serial(depths(self.weights.k)):
            stage, turn = let(passed[0] % stages), let(passed[0] // stages)
            passed[0] = passed[0] + 1
            offset = self._stage(stage)
            WAIT.run(self._full(stage), turn % 2)
            behind = offset + self.x_bytes
            tile = self.weights.load(self.shared, behind, COLUMN_TILES, self.warp, self.lane)
            scales = tile.decoded_scales()
            for step in range(STEPS):
                pairs = tile.fragment(step, scales)
                for i, pair in enumerate((0, 2, 1, 3)):
                    a[step * 4 + i] = pairs[pair]
            WGMMA_FENCE.run()
            for part in range(self.x.parts):
                rows = self._address(offset + part * wide.tokens * ROW_BYTES)
                for step in range(STEPS):
                    at = DESCRIPTOR(rows + tirx.const(step * 32, "uint32"))
                    wgmma(wide.tokens, self.sums, a, step * 4, at)
            WGMMA_COMMIT.run()
            WGMMA_WAIT.run()
            with T.If(tirx.EQ(self.lane, 0)), T.Then():
                ARRIVE.run(self._empty(stage))
        self._store(first_row, first_tile)

    def _store(self, first_row: Expr, first_tile: Expr) -> None:
        """Sum i of a thread: row g + 8 (i / 2 % 2) of the warp's tile, token 8 (i / 4) + 2 c + i %
        2.
        """
        first = (first_tile + self.warp) * ROWS + self.lane // 4
        columns = [let(first), let(first + 8)]
        for eight in range(self.wide.tokens // 8):
            for odd in (0, 1):
                row = let(first_row + eight * 8 + self.lane % 4 * 2 + odd)
                with T.If(int64(row) < self.x.m), T.Then():
                    scale = self.output.row_scale(row)
                    for half, column in enumerate(columns):
                        value = self.sums[eight * 4 + half * 2 + odd]
                        self.output.store(row, column, [value], scale)
