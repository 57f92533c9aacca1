"""What CUDA kernels are built with: TVM's IR builder, the PTX instructions they stand on, and
device functions of our own as text.

A kernel is a TIRx PrimFunc, which is lowered as it is written: no pass schedules it, inserts a
barrier or moves a buffer. Device functions hold what TIRx has no word for, such as arithmetic of
two bfloat16 in one register.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

Expr = Any  # a tvm.tirx expression; TVM ships no type stubs
WARP = 32
OPAQUE = 8  # kOpaque of TVM's op_attr_types.h: not to be fused with anything


@contextmanager
def kernel() -> Iterator[Any]:
    """A builder within a TIRx PrimFunc that passes of Relax leave alone."""
    with IRBuilder() as builder, T.prim_func(s_tir=False):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": OPAQUE})
        yield builder


def by_rows(m: Expr, *ways: tuple[int | None, Callable[[], None]]) -> None:
    """The first way whose rows are m or more; None, the last way's, is any number."""
    (most, emit), *others = ways
    if not others:
        emit()
        return
    with T.If(m <= most):
        with T.Then():
            emit()
        with T.Else():
            by_rows(m, *others)


@contextmanager
def launch(grid: Sequence[Expr], threads: int) -> Iterator[tuple[list[Expr], Expr]]:
    """One kernel launch: (block index of each dimension, int32; thread index)."""
    frames = [T.launch_thread(f"blockIdx.{'xyz'[i]}", size) for i, size in enumerate(grid)]
    blocks = [int32(frame.__enter__()) for frame in frames]
    with T.launch_thread("threadIdx.x", threads) as thread:
        yield blocks, thread
    for frame in reversed(frames):
        frame.__exit__(None, None, None)


@dataclass(frozen=True)
class Device:
    """A device function: its name, C text and result type ("" for none)."""

    name: str
    source: str
    result: str = ""

    def __call__(self, *arguments: Expr) -> Expr:
        return T.cuda.func_call(
            self.name, *arguments, source_code=self.source, return_type=self.result or "void"
        )

    def run(self, *arguments: Expr) -> None:
        """For what it does, not for a result."""
        T.evaluate(self(*arguments))


def int32(x: Expr) -> Expr:
    return tirx.Cast("int32", x)


def int64(x: Expr) -> Expr:
    return tirx.const(x, "int64") if isinstance(x, int) else tirx.Cast("int64", x)


def uint32(x: int) -> Expr:
    return tirx.const(x, "uint32")


def let(x: Expr) -> Expr:
    """x by name."""
    return T.Bind(x)


def shared_out(count: int, thread: Expr, threads: int, emit: Callable[[Expr], None]) -> None:
    """`emit` of every number below `count`, each by one of a block's threads."""
    for start in range(0, count, threads):
        index = thread + start
        if start + threads <= count:
            emit(index)
            continue
        with T.If(index < count), T.Then():
            emit(index)


class Registers:
    """`count` variables of a thread, numbered; every number used is a constant."""

    def __init__(self, count: int, kind: str) -> None:
        self.buffer = T.alloc_buffer((count,), kind, scope="local")
        self.kind = kind
        self.count = count

    def __getitem__(self, number: int) -> Expr:
        return self.buffer[number]

    def __setitem__(self, number: int, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [number])

    def pointer(self, number: int = 0) -> Expr:
        return self.buffer.ptr_to([number])

    def clear(self) -> None:
        for number in range(self.count):
            self[number] = tirx.const(0, self.kind)


def bound(x: Expr, kind: str) -> Expr:
    """x computed once, here."""
    held = Registers(1, kind)
    held[0] = x
    return held[0]


class Shared:
    """The block's dynamic shared memory: bytes, from offset 0 on."""

    def __init__(self, size: int, align: int = 128) -> None:
        self.size = size
        self.buffer = T.alloc_buffer((size,), "uint8", scope="shared.dyn", align=align)

    def at(self, offset: Expr) -> Expr:
        """A pointer."""
        return self.buffer.ptr_to([offset])

    def store_float(self, offset: Expr, value: Expr) -> None:
        """A float32, at a multiple of four."""
        text = (
            "__device__ __forceinline__ void lb_store_float(void* p, float x) "
            "{ *reinterpret_cast<float*>(p) = x; }"
        )
        Device("lb_store_float", text).run(self.at(offset), value)

    def load_float(self, offset: Expr) -> Expr:
        text = (
            "__device__ __forceinline__ float lb_load_float(const void* p) "
            "{ return *reinterpret_cast<const float*>(p); }"
        )
        return bound(Device("lb_load_float", text, "float32")(self.at(offset)), "float32")


def copy_async(destination: Expr, source: Expr, is_valid: Expr | None = None) -> None:
    """16 bytes from global to shared memory, past the L1 cache; zeros where not valid."""
    count: Expr = 16
    if is_valid is not None:
        count = tirx.Select(is_valid, uint32(16), uint32(0))
        T.evaluate(T.ptx["cp.async.cg.shared.global"](destination, source, 16, count))
        return
    T.evaluate(T.ptx["cp.async.cg.shared.global"](destination, source, 16))


def copy_few_async(destination: Expr, source: Expr, size: int, is_valid: Expr) -> None:
    """4, 8 or 16 bytes, as `copy_async`, through the L1 cache."""
    count = tirx.Select(is_valid, uint32(size), uint32(0))
    T.evaluate(T.ptx["cp.async.ca.shared.global"](destination, source, size, count))


def commit_copies() -> None:
    """What this thread copied since the last time is a group."""
    T.evaluate(T.ptx.cp.async_.commit_group())


def wait_for_copies(pending: int) -> None:
    """Until at most that many groups of this thread are under way."""
    T.evaluate(T.ptx.cp.async_.wait_group(pending))


def barrier() -> None:
    """`__syncthreads`."""
    T.evaluate(T.cuda.cta_sync())


def warp_barrier() -> None:
    """`__syncwarp`: what lanes wrote is seen by the others."""
    T.evaluate(T.cuda.warp_sync())


def load_matrices(registers: Registers, first: int, count: int, address: Expr) -> None:
    """`ldmatrix`: `count` (2 or 4) matrices of 8 rows of 16 bytes; each lane names one row."""
    names = [registers[first + i] for i in range(count)]
    instruction = f"ldmatrix.sync.aligned.m8n8.x{count}.shared.b16"
    T.evaluate(T.ptx[instruction](*names, address))


def multiply_add(sums: Registers, at: int, a: Sequence[Expr], b: Sequence[Expr]) -> None:
    """sums[at : at + 4] += A (16, 16) B (16, 8), bfloat16 fragments of a warp."""
    d = [sums[at + i] for i in range(4)]
    T.evaluate(T.ptx["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"](*d, *a, *b, *d))


_LOADS = {
    16: "const uint4 v = *reinterpret_cast<const uint4*>(p); r[0] = v.x; r[1] = v.y; r[2] = v.z; "
    "r[3] = v.w;",
    8: "const uint2 v = *reinterpret_cast<const uint2*>(p); r[0] = v.x; r[1] = v.y;",
}


def load_words(registers: Registers, first: int, pointer: Expr, size: int) -> None:
    """`size` bytes (8 or 16) at a pointer into registers, by one load."""
    text = f"__device__ __forceinline__ void lb_load{size}(unsigned* r, const void* p) "
    Device(f"lb_load{size}", f"{text}{{ {_LOADS[size]} }}").run(registers.pointer(first), pointer)


def load_word(pointer: Expr, size: int) -> Expr:
    """uint32 of the `size` bytes (1, 2 or 4) at a pointer."""
    kind = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t"}[size]
    text = (
        f"__device__ __forceinline__ unsigned lb_word{size}(const void* p) "
        f"{{ return *reinterpret_cast<const {kind}*>(p); }}"
    )
    return Device(f"lb_word{size}", text, "uint32")(pointer)
