"""What this machine reaches at best, measured by kernels that do nothing else: the bounds that a
linear's speed is a share of.

| ceiling | its kernel | unit |
|---|---|---|
| `dot` | int8 dot products between registers (`intrinsics.dot`) | GOP/s, 2 a product and sum |
| `tiles` | products of AMX tiles of bfloat16 (`amx.dot_bf16`), where the ISA has them | GOP/s |
| `bf16` | bfloat16 products between registers (`dot_bf16`), where the ISA has them | GFLOP/s |
| `fma` | float32 FMAs between registers | GFLOP/s |
| `read` | every byte of a buffer that no cache holds, once, some streams a thread | GB/s |
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu import amx, dot_bf16
from lbcompiler.targets.cpu.intrinsics import at, dot, fma, kernel, let, root_block, splat, wide
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS

CHAINS = {16: 20, 8: 8}  # independent sums by lanes: latency x throughput, within the registers
TILES = 4  # independent sums of AMX tiles, as chains of vectors
STEPS = 400_000  # about two milliseconds: starting the threads takes some ten microseconds
READ_BYTES = 1 << 28  # far above any cache of these machines
STREAMS = 2  # a thread reads at once: 3 % more than one, and more of them add nothing (Zen 5)
STREAM_VECTORS = 4  # of a stream in one step of the loop


@dataclass(frozen=True)
class Ceiling:
    """`run` does `amount` units of work: operations, or bytes."""

    run: Callable[[], Any]
    amount: float


@dataclass(frozen=True)
class Peak:
    """An instruction of the form sum = step(sum, x, y).

    Operands are `width` elements of dtype `operand`. Where a step is more than one instruction
    (`is_split`), each chain has an x of its own from memory and y changes with the loop, or the
    compiler would take out what is equal; else both stay in registers.
    """

    sums: str
    operand: str
    width: int
    products: int  # in one lane
    step: Callable[[Any, Any, Any], Any]
    is_split: bool = False
    around: Callable[[], AbstractContextManager[None]] = nullcontext


def ceilings(isa: Isa, threads: int) -> dict[str, Ceiling]:
    """The table above, compiled for an instruction set, `threads` tasks in parallel.

    Where the instruction set has no dot product (generic), `read` alone: what LLVM makes of plain
    loops is no measure of the machine.
    """
    peaks = _peaks(isa)
    functions = {name: _peak(isa, threads, peak) for name, peak in peaks.items()}
    if isa.has_tiles:
        functions["tiles"] = _tiles(threads)
    functions["read"] = _read(threads)
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    module = tvm.compile(tvm.IRModule(named), target=isa.tvm_target())
    found = {"read": _read_ceiling(module["read"], threads)} | {
        name: _peak_ceiling(module[name], isa, threads, peak) for name, peak in peaks.items()
    }
    if isa.has_tiles:
        products = amx.ROWS * COLUMNS * amx.ROW_BYTES // 2
        operations = 2.0 * threads * (STEPS // TILES * TILES) * products
        found["tiles"] = Ceiling(module["tiles"], operations)
    return found


def _peaks(isa: Isa) -> dict[str, Peak]:
    if isa.k_group == 1:
        return {}
    width = isa.lanes * isa.k_group

    def dot_step(total: Any, x: Any, y: Any) -> Any:
        return dot(isa, total, x, tirx.reinterpret(wide("int8", width), y))

    def fma_step(total: Any, x: Any, y: Any) -> Any:
        return fma(x, y, total)

    peaks = {
        "dot": Peak("int32", "uint8", width, isa.k_group, dot_step, not isa.is_avx512),
        "fma": Peak("float32", "float32", isa.lanes, 1, fma_step),
    }
    if isa.has_bf16:
        peaks["bf16"] = Peak(
            "float32",
            "int32",
            isa.lanes,
            2,
            dot_bf16.dot_bf16,
            around=dot_bf16.importing_dot_bf16,
        )
    return peaks


def _peak(isa: Isa, threads: int, peak: Peak) -> Any:
    """PrimFunc(start (chains, lanes), x (chains + 2, width), out (threads, chains * lanes)): every
    chain of sums from its own start, STEPS times.
    """
    chains, lanes = CHAINS[isa.lanes], isa.lanes
    with kernel() as builder:
        start = T.arg("start", T.buffer((chains, lanes), peak.sums))
        x = T.arg("x", T.buffer((chains + 2, peak.width), peak.operand))
        out = T.arg("out", T.buffer((threads, chains * lanes), peak.sums))

        def operand(row: Any) -> Any:
            return let(x[row, at(0, peak.width)])

        with root_block(), peak.around(), T.parallel(threads) as task:
            IRBuilder.name("task", task)
            sums = T.alloc_buffer((chains * lanes,), peak.sums, scope="local")
            slots = [at(i * lanes, lanes) for i in range(chains)]
            for chain, slot in enumerate(slots):
                T.buffer_store(sums, start[chain, at(0, lanes)], [slot])
            one, other = operand(0), operand(1)
            with T.serial(STEPS) as i:
                if peak.is_split:
                    other = operand(chains + i % 2)
                for chain, slot in enumerate(slots):
                    factor = operand(chain) if peak.is_split else one
                    T.buffer_store(sums, peak.step(sums[slot], factor, other), [slot])
            for slot in slots:
                T.buffer_store(out, sums[slot], [task, slot])
    return builder.get()


def _tiles(threads: int) -> Any:
    """PrimFunc(): products of whole tiles of zeros, TILES independent sums, STEPS in all."""
    with kernel() as builder, root_block():
        amx.request()
        with T.parallel(threads) as task:
            IRBuilder.name("task", task)
            amx.configure([(amx.ROWS, amx.ROW_BYTES)] * (TILES + 2))
            with T.serial(STEPS // TILES) as i:
                IRBuilder.name("step", i)
                for total in range(TILES):
                    amx.dot_bf16(total, TILES, TILES + 1)
            amx.release()
    return builder.get()


def _peak_ceiling(function: Any, isa: Isa, threads: int, peak: Peak) -> Ceiling:
    chains = CHAINS[isa.lanes]
    held = [
        tvm.runtime.tensor(array)
        for array in (
            np.arange(chains * isa.lanes).astype(peak.sums).reshape(chains, isa.lanes),
            np.ones((chains + 2, peak.width), peak.operand),
            np.zeros((threads, chains * isa.lanes), peak.sums),
        )
    ]
    sums = threads * STEPS * chains * isa.lanes
    return Ceiling(lambda: function(*held), 2.0 * sums * peak.products)


def _read(threads: int) -> Any:
    """PrimFunc(data int32 (threads, STREAMS, n), out): the sum of each thread's part."""
    count, step = READ_BYTES // threads // STREAMS // 4, STREAM_VECTORS * 16
    with kernel() as builder:
        data = T.arg("data", T.buffer((threads, STREAMS, count), "int32"))
        out = T.arg("out", T.buffer((threads, STREAMS * step), "int32"))
        with root_block(), T.parallel(threads) as task:
            IRBuilder.name("task", task)
            sums = T.alloc_buffer((STREAMS * step,), "int32", scope="local")
            slots = [at(i * 16, 16) for i in range(STREAMS * STREAM_VECTORS)]
            for slot in slots:
                T.buffer_store(sums, splat(0, "int32", 16), [slot])
            with T.serial(count // step) as i:
                for j, slot in enumerate(slots):
                    stream, vector = divmod(j, STREAM_VECTORS)
                    value = data[task, stream, at(i * step + vector * 16, 16)]
                    T.buffer_store(sums, sums[slot] + value, [slot])
            for slot in slots:
                T.buffer_store(out, sums[slot], [task, slot])
    return builder.get()


def _read_ceiling(function: Any, threads: int) -> Ceiling:
    count = READ_BYTES // threads // STREAMS // 4
    data = tvm.runtime.tensor(np.ones((threads, STREAMS, count), np.int32))
    out = tvm.runtime.tensor(np.zeros((threads, STREAMS * STREAM_VECTORS * 16), np.int32))
    return Ceiling(lambda: function(data, out), 4.0 * threads * STREAMS * count)
