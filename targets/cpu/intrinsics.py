"""Vector expressions of the CPU kernels: shorthands over TIR, and the few LLVM intrinsics the
kernels stand on.

Kernels are built with TVM's IR builder rather than parsed from text: what is unrolled, and which
instruction a dot product becomes, is then an ordinary Python loop and an ordinary function.

LLVM may contract a product and a sum into one FMA here (TVM asks for it), on some instruction sets
and not on others. Where bits are part of the contract, the code says `fma` or leaves no sum of a
product.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.isa import AVX2, Isa

Expr = Any  # a tvm.tirx expression; TVM ships no type stubs


@contextmanager
def kernel() -> Iterator[Any]:
    """A builder within a PrimFunc that passes of Relax and TVM leave alone: scheduled, opaque."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8})
        yield builder


@contextmanager
def root_block() -> Iterator[None]:
    """The block that Relax takes for a function's whole body; arguments are declared before."""
    with T.sblock("root"):
        T.reads([])
        T.writes([])
        yield


def lanes_of(x: Expr) -> int:
    """Lanes of an expression; 1 for a scalar."""
    return int(x.ty.dtype.lanes)


def wide(kind: str, lanes: int) -> str:
    """The dtype of `lanes` elements of `kind`."""
    return kind if lanes == 1 else f"{kind}x{lanes}"


def splat(value: float | Expr, kind: str, lanes: int) -> Expr:
    """A number, or a scalar expression of dtype `kind`, in every lane."""
    scalar = tirx.const(value, kind) if isinstance(value, int | float) else value
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def like(x: Expr, kind: str, value: float) -> Expr:
    """The number in as many lanes as x has."""
    return splat(value, kind, lanes_of(x))


def vector(values: Sequence[Expr]) -> Expr:
    """Scalars side by side."""
    return values[0] if len(values) == 1 else tirx.Shuffle(list(values), list(range(len(values))))


def lanes_at(x: Expr, lanes: Iterable[int]) -> Expr:
    """These lanes of x, in their order."""
    return tirx.Shuffle([x], list(lanes))


def part(x: Expr, start: int, lanes: int) -> Expr:
    """`lanes` lanes of x from `start` on."""
    return lanes_at(x, range(start, start + lanes))


def at(start: Expr, lanes: int) -> Expr:
    """The index of `lanes` consecutive elements."""
    return start if lanes == 1 else tirx.Ramp(start, 1, lanes)


def cast(kind: str, x: Expr) -> Expr:
    """Numeric conversion of every lane; to an integer: towards zero."""
    return tirx.Cast(wide(kind, lanes_of(x)), x)


def bits_of(x: Expr) -> Expr:
    """float32 -> the int32 of the same bits."""
    return tirx.reinterpret(wide("int32", lanes_of(x)), x)


def real_of(x: Expr) -> Expr:
    """int32 bits -> float32."""
    return tirx.reinterpret(wide("float32", lanes_of(x)), x)


def load(buffer: Any, row: Sequence[Expr], start: Expr, lanes: int, valid: int) -> Expr:
    """`valid` elements from (*row, start) on, zeros in the lanes behind them."""
    if valid == lanes:
        return buffer[(*row, at(start, lanes))]
    held = [buffer[(*row, start + i)] for i in range(valid)]
    return vector([*held, *[tirx.const(0, buffer.dtype)] * (lanes - valid)])


def store(buffer: Any, row: Sequence[Expr], start: Expr, value: Expr, valid: int) -> None:
    """The first `valid` lanes to (*row, start) on: what is short, in powers of two."""
    lanes = lanes_of(value)
    if valid == lanes:
        T.buffer_store(buffer, value, [*row, at(start, lanes)])
        return
    value, done = bound(value), 0
    for size in (8, 4, 2, 1):
        if valid & size:
            T.buffer_store(buffer, part(value, done, size), [*row, at(start + done, size)])
            done += size


@dataclass(frozen=True)
class Variable:
    """A scalar or vector that changes: a small buffer on the stack, which LLVM makes a register.

    Its scope is the default one, "global": TVM leaves such a buffer below 1 KiB on the stack, but
    takes one of scope "local" from the workspace pool, by two calls each time a task runs, and
    stores there are never dead.
    """

    buffer: Any
    lanes: int

    def get(self) -> Expr:
        return self.buffer[at(0, self.lanes)]

    def set(self, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [at(0, self.lanes)])


def variable(x: Expr) -> Variable:
    """A variable that starts as x."""
    kind = str(x.ty.dtype).partition("x")[0]
    held = Variable(T.alloc_buffer((lanes_of(x),), kind), lanes_of(x))
    held.set(x)
    return held


def bound(x: Expr) -> Expr:
    """x computed once, here: also an index that many others are made of.

    A `Bind` would not do (see `let`): TVM's simplifier puts a pure bound value back into each of
    its uses, until nested ones have grown beyond measure (attention took ten times as long to
    compile).
    """
    return variable(x).get()


class Registers:
    """Vectors that are set again and again, each by its number: buffers as of `bound`."""

    def __init__(self, count: int, kind: str, lanes: int) -> None:
        self._held = [T.alloc_buffer((lanes,), kind) for _ in range(count)]
        self._at = at(0, lanes)

    def __getitem__(self, number: int) -> Expr:
        return self._held[number][self._at]

    def __setitem__(self, number: int, value: Expr) -> None:
        T.buffer_store(self._held[number], value, [self._at])


def let(x: Expr) -> Expr:
    """x by name: for an index of few uses, into which TVM puts it back, and for what is read from
    memory, which it leaves alone.
    """
    return T.Bind(x)


def call(dtype: str, name: str, *arguments: Expr) -> Expr:
    """An LLVM intrinsic by name."""
    return tirx.call_llvm_pure_intrin(dtype, name, *arguments)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c, rounded once."""
    return call(wide("float32", lanes_of(c)), "llvm.fma", a, b, c)


def choose(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes` in the lanes where the condition holds, else `no`; vectors."""
    count = tirx.const(lanes_of(yes), "int32")
    return call(yes.ty.dtype, "llvm.vp.select", condition, yes, no, count)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger integer of each lane."""
    name = "llvm.umax" if a.ty.dtype.startswith("uint") else "llvm.smax"
    return call(a.ty.dtype, name, a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller int32 of each lane."""
    return call(a.ty.dtype, "llvm.smin", a, b)


def difference_or_zero(a: Expr, b: Expr) -> Expr:
    """a - b where a is larger, else 0, of integers that are not negative."""
    if a.ty.dtype.startswith("uint"):
        return call(a.ty.dtype, "llvm.usub.sat", a, b)
    return maximum(a - b, like(a, "int32", 0))


def reduce_max_unsigned(x: Expr) -> Expr:
    """The largest lane of an int32 vector without negative lanes."""
    return call("int32", "llvm.vector.reduce.umax", x)


def reduce_sum(x: Expr) -> Expr:
    """The sum of the lanes of an int32 vector."""
    return call("int32", "llvm.vector.reduce.add", x)


def spread(x: Expr, lane: int) -> Expr:
    """One lane of x in all lanes."""
    return lanes_at(x, [lane] * lanes_of(x))


def reduce_each(vectors: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """The reductions of n vectors of 16 lanes, n a power of two up to 16, in one vector: that of
    vector j in the 16 / n lanes from j * 16 / n on.

    About three instructions a vector, where a reduction by itself takes nine.
    """
    width = lanes_of(vectors[0])
    held, lanes = list(vectors), width
    while len(held) > 1:
        half = lanes // 2
        lower = [j * lanes + p for j in range(width // lanes) for p in range(half)]
        low = [*lower, *(i + width for i in lower)]
        high = [i + half for i in low]
        held = [
            bound(combine(tirx.Shuffle([a, b], low), tirx.Shuffle([a, b], high)))
            for a, b in zip(held[::2], held[1::2], strict=True)
        ]
        lanes = half
    total = held[0]
    while lanes > 1:
        lanes //= 2
        total = bound(combine(total, tirx.Shuffle([total], [i ^ lanes for i in range(width)])))
    return total


def every(x: Expr, count: int) -> Expr:
    """`count` lanes of x at even distances, the first one first."""
    step = lanes_of(x) // count
    if step == 1:
        return x
    return lanes_at(x, range(0, count * step, step))


def shift_right(bits: Expr, by: int) -> Expr:
    """int32 bits, zeros coming in."""
    kind = bits.ty.dtype
    unsigned = tirx.reinterpret(f"u{kind}", bits)
    return tirx.reinterpret(kind, unsigned >> splat(by, "uint32", lanes_of(bits)))


def prefetch(element: Expr, *, level: int = 2, to_write: bool = False) -> None:
    """Ask for an element's cache line, into the L2 or the L1 cache; any address will do."""
    locality, data = 4 - level, 1
    options = [tirx.const(value, "int32") for value in (int(to_write), locality, data)]
    address = tirx.address_of(element)
    T.evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *options))


def look_up(isa: Isa, table: Sequence[int], indices: Expr) -> Expr:
    """table[index] for uint8 indices below 16, by one `vpshufb`."""
    lanes = lanes_of(indices)
    words = [int.from_bytes(bytes(table[i : i + 4]), "little", signed=True) for i in (0, 4, 8, 12)]
    entries = vector([tirx.const(word, "int32") for word in words * (lanes // 16)])
    name = "llvm.x86.avx512.pshuf.b.512" if isa.is_avx512 else "llvm.x86.avx2.pshuf.b"
    table_vector = tirx.reinterpret(f"uint8x{lanes}", entries)
    return call(f"uint8x{lanes}", name, table_vector, indices)


def look_up_float(table: Sequence[float], indices: Expr) -> Expr:
    """table[index] of 16 float32 for int32x16 indices below 16, by one `vpermps`."""
    entries = vector([tirx.const(float(value), "float32") for value in table])
    return call("float32x16", "llvm.x86.avx512.permvar.sf.512", entries, indices)


def activation_group(isa: Isa, buffer: Any, row: Expr, k: Expr) -> Expr:
    """k_group int8 activations from (row, k) on, in every column's place."""
    if isa.k_group == 1:
        return splat(cast("int32", buffer[row, k]), "int32", isa.lanes)
    word = tirx.reinterpret("int32", buffer[row, at(k, isa.k_group)])
    dtype = wide("int8", isa.k_group * isa.lanes)
    return tirx.reinterpret(dtype, splat(word, "int32", isa.lanes))


def dot(isa: Isa, total: Expr, weights: Expr, activations: Expr) -> Expr:
    """total + the dot product of each column's k-group: int32 lanes; weights uint8, or int8 on
    AVX2.

    Exact: on AVX2 the sum of two products has to fit 16 bits, which `dot_takes_unsigned` decides.
    """
    if isa.is_avx512:
        name = "llvm.x86.avx512.vpdpbusd.512"
        return call(total.ty.dtype, name, total, weights, activations)
    if isa == AVX2:
        return total + _dot_avx2(weights, activations)
    return total + cast("int32", weights) * activations


def dot_takes_unsigned(isa: Isa, weight_limit: int, activation_limit: int) -> bool:
    """Whether `dot` is exact for unsigned weights up to a limit and activations up to +- one."""
    return isa != AVX2 or 2 * weight_limit * activation_limit <= 32767


def _dot_avx2(weights: Expr, activations: Expr) -> Expr:
    if weights.ty.dtype == "int8x32":  # |w| * (a with the sign of w): 128 * 127 * 2 fits 16 bits
        activations = call("int8x32", "llvm.x86.avx2.psign.b", activations, weights)
        weights = call("int8x32", "llvm.abs", weights, tirx.const(0, "bool"))
    pairs = call("int16x16", "llvm.x86.avx2.pmadd.ub.sw", weights, activations)
    ones = splat(1, "int16", 16)
    return call("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, ones)
