"""What this machine reaches at best, measured by kernels that do nothing else: the bounds that a
GEMM's speed is a share of.

| ceiling | its kernel | unit |
|---|---|---|
| `dot` | int8 dot products between registers (`intrinsics.dot`) | GOP/s, 2 a product and sum |
| `fma` | float32 FMAs between registers | GFLOP/s |
| `read` | every byte of a buffer that no cache holds, once, a stream a thread | GB/s |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import at, dot, fma, kernel, let, root_block, splat, wide
from lbcompiler.targets.cpu.isa import Isa

CHAINS = {16: 20, 8: 10}  # independent sums by lanes: latency x throughput, within the registers
STEPS = 400_000  # a millisecond: starting the threads takes some ten microseconds
READ_BYTES = 1 << 29  # far above any cache of these machines
STREAM_VECTORS = 8  # read in one step of the loop


@dataclass(frozen=True)
class Ceiling:
    """`run` does `amount` units of work: operations, or bytes."""

    run: Callable[[], Any]
    amount: float


def ceilings(isa: Isa, threads: int) -> dict[str, Ceiling]:
    """The table above, compiled for an instruction set, `threads` tasks in parallel.

    Where the instruction set has no dot product (generic), `read` alone: what LLVM makes of plain
    loops is no measure of the machine.
    """
    functions = {"read": _read(threads)}
    chains = CHAINS[isa.lanes]
    if isa.k_group > 1:
        functions |= {
            "dot": _dot_peak(isa, threads, chains),
            "fma": _fma_peak(isa, threads, chains),
        }
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    module = tvm.compile(tvm.IRModule(named), target=isa.tvm_target())
    out = tvm.runtime.tensor(np.zeros((threads, chains * isa.lanes), np.int32))
    real = tvm.runtime.tensor(np.zeros((threads, chains * isa.lanes), np.float32))
    bytes_in = tvm.runtime.tensor(np.ones((chains + 2, isa.lanes * isa.k_group), np.uint8))
    reals_in = tvm.runtime.tensor(np.ones((chains + 2, isa.lanes), np.float32))
    large = tvm.runtime.tensor(np.ones((threads, READ_BYTES // threads // 4), np.int32))
    total = tvm.runtime.tensor(np.zeros((threads, STREAM_VECTORS * 16), np.int32))
    sums = threads * STEPS * chains * isa.lanes
    found = {
        "read": Ceiling(lambda: module["read"](large, total), large.numpy().nbytes),
        "dot": Ceiling(lambda: module["dot"](bytes_in, out), 2.0 * sums * isa.k_group),
        "fma": Ceiling(lambda: module["fma"](reals_in, real), 2.0 * sums),
    }
    return {name: found[name] for name in functions}


def _dot_peak(isa: Isa, threads: int, chains: int) -> Any:
    width = isa.lanes * isa.k_group

    def step(total: Any, a: Any, b: Any) -> Any:
        return dot(isa, total, a, tirx.reinterpret(wide("int8", width), b))

    return _peak(isa, threads, chains, "int32", ("uint8", width), step)


def _fma_peak(isa: Isa, threads: int, chains: int) -> Any:
    def step(total: Any, a: Any, b: Any) -> Any:
        return fma(a, b, total)

    return _peak(isa, threads, chains, "float32", ("float32", isa.lanes), step)


def _peak(
    isa: Isa,
    threads: int,
    chains: int,
    dtype: str,
    operand: tuple[str, int],
    step: Callable[[Any, Any, Any], Any],
) -> Any:
    """PrimFunc(x (chains + 2, width), out (threads, chains * lanes)): `chains` sums, STEPS times.

    Each sum has a factor of its own and the other alternates, so that no product can be reused.
    """
    kind, width = operand
    with kernel() as builder:
        x = T.arg("x", T.buffer((chains + 2, width), kind))
        out = T.arg("out", T.buffer((threads, chains * isa.lanes), dtype))
        with root_block(), T.parallel(threads) as task:
            IRBuilder.name("task", task)
            sums = T.alloc_buffer((chains * isa.lanes,), dtype, scope="local")
            slots = [at(i * isa.lanes, isa.lanes) for i in range(chains)]
            for slot in slots:
                T.buffer_store(sums, splat(0, dtype, isa.lanes), [slot])
            with T.serial(STEPS) as i:
                other = let(x[chains + i % 2, at(0, width)])
                for chain, slot in enumerate(slots):
                    total = step(sums[slot], x[chain, at(0, width)], other)
                    T.buffer_store(sums, total, [slot])
            for slot in slots:
                T.buffer_store(out, sums[slot], [task, slot])
    return builder.get()


def _read(threads: int) -> Any:
    """PrimFunc(data int32 (threads, n), out): the sum of each thread's part, 64 bytes a load."""
    count, step = READ_BYTES // threads // 4, STREAM_VECTORS * 16
    with kernel() as builder:
        data = T.arg("data", T.buffer((threads, count), "int32"))
        out = T.arg("out", T.buffer((threads, step), "int32"))
        with root_block(), T.parallel(threads) as task:
            IRBuilder.name("task", task)
            sums = T.alloc_buffer((step,), "int32", scope="local")
            slots = [at(i * 16, 16) for i in range(STREAM_VECTORS)]
            for slot in slots:
                T.buffer_store(sums, splat(0, "int32", 16), [slot])
            with T.serial(count // step) as i:
                for j, slot in enumerate(slots):
                    value = sums[slot] + data[task, at(i * step + j * 16, 16)]
                    T.buffer_store(sums, value, [slot])
            for slot in slots:
                T.buffer_store(out, sums[slot], [task, slot])
    return builder.get()
