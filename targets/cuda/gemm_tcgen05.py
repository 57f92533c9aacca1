"""The block-scaled GEMM of sm_100a: y^T = W x^T by `tcgen05.mma`, sums and scales in tensor memory.

    block (128 columns of y, `tokens` rows)
        a producer thread: for tile of 128 bytes of K, into a ring of `stages`
            TMA of codes of W (128 rows) and of x (tokens), swizzled by 128 bytes
            bulk copies of their scales, 512 bytes for 128 rows and four blocks
            full[stage] counts the bytes
        a multiplying thread: for tile
            wait full[stage]; tcgen05.cp of the scales to tensor memory
            4 tcgen05.mma of 32 bytes of K        (they and the copies run in this order)
            tcgen05.commit: arrives at empty[stage] when they are done
            after the last: commit to `done`
        four warps: wait done; y = epilogue(sums), a lane a column of y, 32 rows at once

    tensor memory, columns of 32 bits       0 .. tokens - 1    sums
                                            then 4 A           scales of W
                                            then 4 A a group   scales of x

W is operand A, so that few rows are a narrow operand B. Rows beyond M and N are zeros that TMA
fills in. It has been compiled, its machine code looked at, and emulated; it has never run on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.asynchronous import (
    COPY_BULK,
    COPY_TILE,
    EXPECT,
    FENCE_INIT,
    INIT,
    WAIT,
    shared_address,
    tensor_map,
)
from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Expr,
    Registers,
    Shared,
    barrier,
    bound,
    int64,
    launch,
    let,
    load_word,
    uint32,
    warp_barrier,
)
from lbcompiler.targets.cuda.layout_native import ROW, STEP, Pair
from lbcompiler.targets.cuda.layout_tcgen05 import ATOM, ATOM_BLOCKS, GROUP, atoms
from lbcompiler.targets.cuda.layout_tcgen05 import COLUMNS as ATOM_COLUMNS
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.tcgen05 import (
    AFTER_BARRIER,
    ALLOCATE,
    ARRIVE_WHEN_DONE,
    BEFORE_BARRIER,
    CODES_AT,
    COPY_SCALES,
    FEWEST_COLUMNS,
    FREE,
    LEAVE_TO_OTHERS,
    ROWS,
    SCALES_AT,
    instruction,
    load_sums,
    multiply,
)

STORING = ROWS // WARP  # warps, each of its quarter of the lanes
PRODUCER, MULTIPLIER = STORING, STORING + 1  # one warp each
THREADS = (STORING + 2) * WARP
STEPS = ROW // STEP
AT_ONCE = 32  # rows of y that a lane holds
ALIGN = 1024  # of a swizzled tile
DONE, ADDRESS = 512, 520  # offsets of an mbarrier and of a word, behind 32 stages of two mbarriers


@dataclass(frozen=True)
class Tokens:
    """`count` rows of x a block (16, or groups of 128 up to 256), over a ring of `stages`; fewer
    than 128 must be all there are.
    """

    count: int
    stages: int

    @property
    def groups(self) -> int:
        """Of 128 rows, whose scales lie together."""
        return -(-self.count // GROUP)

    def code_bytes(self) -> int:
        """Of a stage, W's before those of x."""
        return (ROWS + self.count) * ROW

    def stage_bytes(self, pair: Pair) -> int:
        size = self.code_bytes() + (1 + self.groups) * atoms(pair) * ATOM
        return -(-size // ALIGN) * ALIGN

    def shared_bytes(self, pair: Pair) -> int:
        return ALIGN + self.stages * self.stage_bytes(pair)

    def columns(self, pair: Pair) -> int:
        """Of tensor memory that a block takes."""
        used = self.count + (1 + self.groups) * atoms(pair) * ATOM_COLUMNS
        return max(FEWEST_COLUMNS, 1 << (used - 1).bit_length())


@dataclass(frozen=True)
class Tiled:
    """One operand as layout_tcgen05.py has it: codes (rows, 128 S), scales (groups, S A, 512)."""

    pair: Pair
    rows: Expr
    k: int
    codes: Any
    scales: Any

    @classmethod
    def declare(cls, name: str, pair: Pair, rows: Expr, k: int) -> "Tiled":
        depth = pair.depths(k)
        codes = T.arg(name, T.buffer((rows, depth * ROW), "uint8"))
        groups = (rows + (GROUP - 1)) // GROUP
        scales = T.arg(f"{name}_scales", T.buffer((groups, depth * atoms(pair), ATOM), "uint8"))
        return cls(pair, rows, k, codes, scales)

    @property
    def depths(self) -> int:
        return self.pair.depths(self.k)

    def tensor_map(self, box: int) -> Expr:
        """Of the codes, `box` rows by 128 bytes."""
        return tensor_map(self.codes, [self.rows, 1, self.depths * ROW], [box, 1, ROW], "uint8")

    def copy_scales(self, target: Expr, group: Expr, depth: Expr, arrive: Expr) -> None:
        """Start to copy a group's scales of a tile."""
        count = atoms(self.pair)
        place = [int64(group), int64(depth) * count, int64(0)]
        COPY_BULK.run(target, self.scales.ptr_to(place), count * ATOM, arrive)


def emit_tcgen05(tokens: Tokens, x: Tiled, weights: Tiled, output: Output) -> None:
    """The launch, within a kernel's PrimFunc."""
    maps = (weights.tensor_map(ROWS), x.tensor_map(tokens.count))
    grid = [(x.rows + (tokens.count - 1)) // tokens.count, -(-weights.rows // ROWS)]
    with launch(grid, THREADS) as (place, thread):
        _Block(tokens, x, weights, output, maps, place, thread).emit()


class _Block:
    def __init__(
        self,
        tokens: Tokens,
        x: Tiled,
        weights: Tiled,
        output: Output,
        maps: tuple[Any, Any],
        place: Sequence[Expr],
        thread: Expr,
    ) -> None:
        self.tokens, self.x, self.weights, self.output = tokens, x, weights, output
        self.pair, self.maps = x.pair, maps
        self.thread, self.lane, self.warp = thread, let(thread % WARP), let(thread // WARP)
        self.first_row = let(place[0] * tokens.count)
        self.first_column = let(place[1] * ROWS)
        self.shared = Shared(tokens.shared_bytes(self.pair), ALIGN)
        self.base = bound(shared_address(self.shared.at(0)), "uint32")

    def _address(self, offset: Expr) -> Expr:
        return self.base + tirx.Cast("uint32", offset)

    def _full(self, stage: Expr) -> Expr:
        return self._address(stage * 16)

    def _empty(self, stage: Expr) -> Expr:
        return self._full(stage) + uint32(8)

    def _stage(self, stage: Expr) -> Expr:
        """The address of its codes of W."""
        return bound(self._address(stage * self.tokens.stage_bytes(self.pair) + ALIGN), "uint32")

    def emit(self) -> None:
        columns = self.tokens.columns(self.pair)
        with T.If(tirx.EQ(self.thread, 0)), T.Then():
            for stage in range(self.tokens.stages):
                INIT.run(self._full(tirx.const(stage, "int32")), 1)
                INIT.run(self._empty(tirx.const(stage, "int32")), 1)
            INIT.run(self.base + uint32(DONE), 1)
            FENCE_INIT.run()
        with T.If(tirx.EQ(self.warp, MULTIPLIER)), T.Then():
            ALLOCATE.run(self.base + uint32(ADDRESS), columns)
            LEAVE_TO_OTHERS.run()
        BEFORE_BARRIER.run()
        barrier()
        AFTER_BARRIER.run()
        tensor = bound(load_word(self.shared.at(ADDRESS), 4), "uint32")
        with T.If(self.warp < STORING):
            with T.Then():
                self._store(tensor)
            with T.Else():
                with T.If(tirx.EQ(self.thread, PRODUCER * WARP)), T.Then():
                    self._produce()
                with T.If(tirx.EQ(self.thread, MULTIPLIER * WARP)), T.Then():
                    self._multiply(tensor)
                warp_barrier()
        BEFORE_BARRIER.run()
        barrier()
        with T.If(tirx.EQ(self.warp, MULTIPLIER)), T.Then():
            AFTER_BARRIER.run()
            FREE.run(tensor, columns)

    def _produce(self) -> None:
        tokens, scale_bytes = self.tokens, atoms(self.pair) * ATOM
        rest = (self.x.rows + (GROUP - 1)) // GROUP - int64(self.first_row // GROUP)
        held = bound(
            tirx.Cast("int32", tirx.Min(rest, int64(tokens.groups))), "int32"
        )  # groups of x that there are
        with T.serial(self.x.depths) as depth:
            stage = let(depth % tokens.stages)
            full, at = self._full(stage), self._stage(stage)
            WAIT.run(self._empty(stage), (depth // tokens.stages + 1) % 2)
            EXPECT.run(full, held * scale_bytes + (tokens.code_bytes() + scale_bytes))
            rows = (self.first_column, self.first_row)
            for target, tile, row in zip((0, ROWS * ROW), self.maps, rows, strict=True):
                held_map = T.address_of(tile)
                COPY_TILE.run(at + uint32(target), held_map, depth * ROW, 0, row, full)
            behind = bound(at + uint32(tokens.code_bytes()), "uint32")
            self.weights.copy_scales(behind, self.first_column // GROUP, depth, full)
            with T.serial(held) as group:
                target = behind + tirx.Cast("uint32", (group + 1) * scale_bytes)
                self.x.copy_scales(target, self.first_row // GROUP + group, depth, full)

    def _multiply(self, tensor: Expr) -> None:
        tokens, pair, count = self.tokens, self.pair, atoms(self.pair)
        groups = tokens.groups
        w_scales = tokens.count
        x_scales = w_scales + count * ATOM_COLUMNS
        with T.serial(self.x.depths) as depth:
            stage = let(depth % tokens.stages)
            at = self._stage(stage)
            WAIT.run(self._full(stage), depth // tokens.stages % 2)
            AFTER_BARRIER.run()
            for atom in range(count):
                for group in range(1 + groups):
                    source = tokens.code_bytes() + (group * count + atom) * ATOM
                    column = w_scales + atom * ATOM_COLUMNS
                    if group:
                        column = x_scales + (atom * groups + group - 1) * ATOM_COLUMNS
                    COPY_SCALES.run(tensor + uint32(column), SCALES_AT(at + uint32(source)))
            for step in range(STEPS):
                atom = step * pair.step_scales // ATOM_BLOCKS
                multiply(pair).run(
                    tensor,
                    CODES_AT(at + uint32(step * STEP)),
                    CODES_AT(at + uint32(ROWS * ROW + step * STEP)),
                    uint32(instruction(pair, tokens.count, step)),
                    tensor + uint32(w_scales + atom * ATOM_COLUMNS),
                    tensor + uint32(x_scales + atom * groups * ATOM_COLUMNS),
                    depth if step == 0 else 1,
                )
            ARRIVE_WHEN_DONE.run(self._empty(stage))
        ARRIVE_WHEN_DONE.run(self.base + uint32(DONE))

    def _store(self, tensor: Expr) -> None:
        """Lane l of the four warps is column l of the block."""
        WAIT.run(self.base + uint32(DONE), 0)
        AFTER_BARRIER.run()
        each = min(AT_ONCE, self.tokens.count)
        column = let(self.first_column + self.thread)
        lanes = bound(tensor + (tirx.Cast("uint32", self.warp * WARP) << uint32(16)), "uint32")
        with T.serial(self.tokens.count // each) as piece:
            first = let(self.first_row + piece * each)
            with T.If(int64(first) < self.x.rows), T.Then():
                sums = Registers(each, "float32")
                load_sums(sums, lanes + tirx.Cast("uint32", piece * each))
                for i in range(each):
                    with T.If(int64(first + i) < self.x.rows), T.Then():
                        scale = self.output.row_scale(first + i)
                        self.output.store(first + i, column, [sums[i]], scale)
