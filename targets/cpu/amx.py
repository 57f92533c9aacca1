"""Tiles of AMX: C (16 x 16 float32) += A (rows x pairs of bfloat16) . B (pairs x 16 columns).

A tile has 16 rows of up to 64 bytes. `tdpbf16ps` takes 16 cycles, `tileloadd` 8 and `tilestored` 16
on a Sapphire Rapids core, so a tile of int32 or float32 results costs as much to store as to make.
Products are added in pairs, each step rounded to nearest even, denormals taken as zero: where all
of a sum is exact and normal the order does not matter.

Linux grants the registers to a process that asks (`request`); each thread then says what its tiles
look like (`configure`) and gives them back (`release`).
"""

from collections.abc import Sequence
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import Expr, bound, call, let
from lbcompiler.targets.cpu.isa import ARCH_PRCTL, REQUEST, TILE_DATA

TILES = 8
ROWS = 16  # of a tile
ROW_BYTES = 64
DEPTHS = (16, 32)  # k's of bfloat16 that are worth a tile
_PALETTE = 1
_GET_AFFINITY = 204  # the system call's number on x86-64
_MASK_WORDS = 64  # of 64 processors each
_REFUSED = (
    "the system refuses AMX tiles to this process (arch_prctl ARCH_REQ_XCOMP_PERM): compile for "
    "--target cpu:avx512_vnni, or run on Linux 5.16 or newer where a filter of system calls lets "
    "this one through"
)


def request() -> None:
    """Asks the system for the right to use tiles, which holds for the process; the function fails
    where it is refused.
    """
    numbers = [tirx.const(number, "int64") for number in (ARCH_PRCTL, REQUEST, TILE_DATA)]
    refused = let(tirx.call_extern("int64", "syscall", *numbers))
    with T.Assert(refused == 0, _REFUSED):
        pass


def processors() -> Expr:
    """How many the calling thread may run on, 1 or more: sched_getaffinity(2)."""
    mask = T.alloc_buffer((_MASK_WORDS,), "int64")
    for i in range(_MASK_WORDS):
        T.buffer_store(mask, tirx.const(0, "int64"), [i])
    numbers = [tirx.const(number, "int64") for number in (_GET_AFFINITY, 0, 8 * _MASK_WORDS)]
    T.evaluate(tirx.call_extern("int64", "syscall", *numbers, tirx.address_of(mask[0])))
    count = tirx.const(0, "int64")
    for i in range(_MASK_WORDS):
        count = count + call("int64", "llvm.ctpop", mask[i])
    return bound(tirx.max(count, tirx.const(1, "int64")))


def configure(shapes: Sequence[tuple[int, int]]) -> None:
    """This thread's tiles 0, 1, ...: (rows, bytes of a row) each; all of them are zero then."""
    config = bytearray(64)
    config[0] = _PALETTE
    for tile, (rows, width) in enumerate(shapes):
        config[16 + 2 * tile] = width
        config[48 + tile] = rows
    words = [int.from_bytes(config[i : i + 4], "little") for i in range(0, 64, 4)]
    held = T.alloc_buffer((len(words),), "int32")
    for i, word in enumerate(words):
        T.buffer_store(held, tirx.const(word, "int32"), [i])
    _call("llvm.x86.ldtilecfg", tirx.address_of(held[0]))


def release() -> None:
    """This thread's tiles are in use no more."""
    _call("llvm.x86.tilerelease")


def load(tile: int, first: Any, stride: int) -> None:
    """Rows of `stride` bytes from the buffer element `first` on."""
    _call("llvm.x86.tileloadd64", _number(tile), tirx.address_of(first), _bytes(stride))


def store(tile: int, first: Any) -> None:
    """Row after row, 64 bytes each, to the buffer element `first` and behind."""
    _call("llvm.x86.tilestored64", _number(tile), tirx.address_of(first), _bytes(ROW_BYTES))


def zero(tile: int) -> None:
    """All zeros."""
    _call("llvm.x86.tilezero", _number(tile))


def dot_bf16(total: int, a: int, b: int) -> None:
    """Tile `total` += a . b."""
    _call("llvm.x86.tdpbf16ps", _number(total), _number(a), _number(b))


def _number(tile: int) -> Expr:
    return tirx.const(tile, "int8")


def _bytes(count: int) -> Expr:
    return tirx.const(count, "int64")


def _call(name: str, *arguments: Expr) -> None:
    T.evaluate(tirx.call_llvm_intrin("void", name, *arguments))
