"""The exact GEMM for few rows of x: bound by how fast packed weights come from memory.

    block (16 columns of y), its warps share K: warp w takes the tiles w, w + warps, ..
        each warp its own ring of `stages` in shared memory, without a barrier of the block:
            cp.async of its tile `stages` - 1 ahead: packed W (16, 64), and x (8 or 16, 64)
            for step of 16 k's
                W: decoded, operand A      x: ldmatrix, operand B      mma.sync
    sums of the warps, added up through shared memory in the order of the warps
    y = epilogue(sums)

The product is the transposed one: 16 rows of W against 8 rows of x fill the instruction better than
8 against 16, and the fragments of a packed tile fit either way.
"""

from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.gemm_mma import Activations, row_piece
from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Expr,
    Registers,
    Shared,
    barrier,
    commit_copies,
    int64,
    launch,
    let,
    load_matrices,
    multiply_add,
    wait_for_copies,
    warp_barrier,
)
from lbcompiler.targets.cuda.layout import ROWS, STEPS, depths
from lbcompiler.targets.cuda.output import Output
from lbcompiler.targets.cuda.split import Parts, Span
from lbcompiler.targets.cuda.weights import Weights

EIGHT = 8  # rows of x that one instruction takes


@dataclass(frozen=True)
class Few:
    """A kernel for up to `rows` (8 or 16) rows of x, `warps` a block, each with `stages`."""

    rows: int
    warps: int
    stages: int

    def shared_bytes(self, row_bytes: int, tile_bytes: int) -> int:
        ring = self.stages * (self.rows * row_bytes + tile_bytes)
        return self.warps * max(ring, self.rows * ROWS * 4)


def emit_few(
    few: Few, x: Activations, weights: Weights, output: Output, parts: Parts | None = None
) -> None:
    """The launch, within a kernel's PrimFunc, for an m of up to `few.rows`."""
    count = 1 if parts is None else parts.count
    grid = [-(-weights.n // ROWS)] if parts is None else [-(-weights.n // ROWS), count]
    with launch(grid, few.warps * WARP) as (place, thread):
        stage_bytes = few.rows * x.row_bytes + weights.tile_bytes
        shared = Shared(few.shared_bytes(x.row_bytes, weights.tile_bytes))
        lane, warp = let(thread % WARP), let(thread // WARP)
        ring = let(warp * (few.shared_bytes(x.row_bytes, weights.tile_bytes) // few.warps))
        sums = Registers(few.rows // EIGHT * 4, "float32")
        sums.clear()
        span = Span.of(depths(weights.k), count, place[-1])
        if parts is not None:
            output = parts.output(output, place[1])
        _sum_of_warp(few, x, weights, span, shared, ring, stage_bytes, place[0], warp, lane, sums)
        _add_up(few, shared, warp, lane, sums)
        _store(few, x, output, shared, place[0], thread)


def _sum_of_warp(
    few: Few,
    x: Activations,
    weights: Weights,
    span: Span,
    shared: Shared,
    ring: Expr,
    stage_bytes: int,
    tile: Expr,
    warp: Expr,
    lane: Expr,
    sums: Registers,
) -> None:
    zero = tirx.const(0, "int32")
    x_bytes = few.rows * x.row_bytes

    def copy(number: Expr) -> None:
        """The warp's tile of that number, if it has one."""
        depth = let(span.first + number * few.warps + warp)
        with T.If(depth < span.end), T.Then():
            offset = let(ring + number % few.stages * stage_bytes)
            x.copy(shared, offset, few.rows, zero, depth, lane, WARP)
            weights.copy(shared, offset + x_bytes, 1, tile, depth, lane, WARP)
        commit_copies()

    for number in range(few.stages - 1):
        copy(tirx.const(number, "int32"))
    with T.serial((span.end - span.first + (few.warps - 1)) // few.warps) as number:
        wait_for_copies(few.stages - 2)
        warp_barrier()
        copy(number + (few.stages - 1))
        with T.If(span.first + number * few.warps + warp < span.end), T.Then():
            offset = let(ring + number % few.stages * stage_bytes)
            held = weights.load(shared, offset + x_bytes, 1, zero, lane)
            scales = held.decoded_scales()
            for step in range(STEPS):
                pairs = held.fragment(step, scales)
                a = [pairs[0], pairs[2], pairs[1], pairs[3]]
                for part in range(x.parts):
                    _multiply(few, shared, offset, part, step, lane, a, sums)


def _multiply(
    few: Few,
    shared: Shared,
    offset: Expr,
    part: int,
    step: int,
    lane: Expr,
    a: list[Expr],
    sums: Registers,
) -> None:
    """sums += A x^T for a step; lanes 0..7 name the rows of x for its lower 8 k's, 8..15 for the
    upper.
    """
    for eight in range(few.rows // EIGHT):
        b = Registers(2, "uint32")
        row = part * few.rows + eight * EIGHT + lane % EIGHT
        at = row_piece(row, step * 2 + lane // EIGHT % 2)
        load_matrices(b, 0, 2, shared.at(offset + at))
        multiply_add(sums, eight * 4, a, [b[0], b[1]])


def _add_up(few: Few, shared: Shared, warp: Expr, lane: Expr, sums: Registers) -> None:
    """Every warp's (rows, 16) sums to shared memory, one behind another, over the rings."""
    barrier()
    for eight in range(few.rows // EIGHT):
        for i in range(4):
            row = eight * EIGHT + lane % 4 * 2 + i % 2
            column = lane // 4 + i // 2 * 8
            at = ((warp * few.rows + row) * ROWS + column) * 4
            shared.store_float(at, sums[eight * 4 + i])
    barrier()


def _store(
    few: Few, x: Activations, output: Output, shared: Shared, tile: Expr, thread: Expr
) -> None:
    """One thread a sum, warps in ascending order."""
    threads = few.warps * WARP
    for start in range(0, few.rows * ROWS, threads):
        index = let(thread + start)
        row, column = let(index // ROWS), let(tile * ROWS + index % ROWS)
        is_place = int64(row) < x.m
        if start + threads > few.rows * ROWS:
            is_place = tirx.And(index < few.rows * ROWS, is_place)
        with T.If(is_place), T.Then():
            total = Registers(1, "float32")
            total.clear()
            for warp in range(few.warps):
                value = shared.load_float((warp * few.rows * ROWS + index) * 4)
                total[0] = total[0] + value
            output.store(row, column, [total[0]], output.row_scale(row))
