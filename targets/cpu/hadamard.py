"""The butterflies of a `Rotation` on rows of float32, in its order of sums: the same bits.

A row is rotated a few vectors at a time, from where it comes to where it is wanted. Distances below
16 are within a vector: its lanes exchanged, plus itself with half of the signs turned. Those up to
128 are between registers, and larger ones between pieces of the row in the L1 cache.

    for group of max(size, 64) lanes, at most 256
        v = 4 .. 16 vectors of the row, with their signs
        distance 1, 2, 4, 8:     v[i] = exchanged(v[i]) + (v[i] with the sign of its second lanes)
        distance 16, 32, ..:     v[i], v[j] = v[i] + v[j], v[i] - v[j]
        row = v * factor

Between a product and a sum there is always a turn of signs or an exchange, so nothing here becomes
an FMA on one instruction set and stays two roundings on another.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, sym, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.ir.rotation import Rotation, rotation_of
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bits_of,
    bound,
    kernel,
    lanes_at,
    let,
    like,
    load,
    real_of,
    root_block,
    store,
    vector,
)

LANES = 16
GROUP = 4 * LANES  # of a loop's step, where the rotation is not larger
IN_REGISTERS = 16 * LANES  # elements that are rotated before any is stored

Load = Callable[[Expr, int], Expr]  # (start, valid lanes) -> a vector, zeros behind them


def rotate_row(rotation: Rotation, k: int, source: Load, to: Any, row: Sequence[Expr] = ()) -> None:
    """Emits to[*row, :k] = the rotated k elements of `source`.

    Each vector of `source` is asked for once, in ascending order. `to` may end at k.
    """
    if rotation.size > IN_REGISTERS:
        _rotate_large(rotation, k, source, to, row)
        return
    unit = max(rotation.size, LANES)
    group = max(rotation.size, GROUP)

    def part(start: Expr, count: int) -> None:
        for first in range(0, count, unit):
            _rotate_vectors(rotation, start + first, min(unit, count - first), source, to, row)

    if k // group:
        with T.serial(k // group) as index:
            IRBuilder.name("group", index)
            part(let(index * group), group)
    if k % group:
        part(k // group * group, k % group)


def _rotate_vectors(
    rotation: Rotation, start: Expr, count: int, source: Load, to: Any, row: Sequence[Expr]
) -> None:
    """`count` elements: a whole block of the rotation, or several within a vector."""
    held = _butterflies(rotation, start, count, 0, source)
    factor = float(rotation.factor)
    for i, x in enumerate(held):
        valid = min(LANES, count - i * LANES)
        store(to, row, start + i * LANES, x * like(x, "float32", factor), valid)


def _butterflies(
    rotation: Rotation, start: Expr, count: int, offset: int, source: Load
) -> list[Expr]:
    """The vectors of `count` elements, `offset` into a block, after all distances below count."""
    signs = rotation.signs < 0
    held = []
    for i in range(0, count, LANES):
        x = bound(source(start + i, min(LANES, count - i)))
        turned = [bool(signs[(offset + i + lane) % rotation.size]) for lane in range(LANES)]
        held.append(bound(_turned(x, turned)) if any(turned) else x)
    span = min(rotation.size, max(count, LANES))
    distance = 1
    while distance < span:
        if distance < LANES:
            held = [_within(x, distance) for x in held]
        else:
            _between(held, distance // LANES)
        distance *= 2
    return held


def _within(x: Expr, distance: int) -> Expr:
    """a + b in the first lane of each pair, a - b in the second."""
    exchanged = lanes_at(x, [lane ^ distance for lane in range(LANES)])
    return bound(exchanged + _turned(x, [bool(lane & distance) for lane in range(LANES)]))


def _turned(x: Expr, lanes: Sequence[bool]) -> Expr:
    """x with the other sign in these lanes."""
    mask = vector([tirx.const(-(1 << 31) if lane else 0, "int32") for lane in lanes])
    return real_of(bits_of(x) ^ mask)


def _between(held: list[Expr], distance: int) -> None:
    for i in range(len(held)):
        if not i & distance:
            a, b = held[i], held[i + distance]
            held[i], held[i + distance] = bound(a + b), bound(a - b)


def _rotate_large(rotation: Rotation, k: int, source: Load, to: Any, row: Sequence[Expr]) -> None:
    """Blocks of more than the registers hold: these first, then between places of the row."""
    size, pieces = rotation.size, rotation.size // IN_REGISTERS
    with T.serial(k // size) as block:
        IRBuilder.name("block", block)

        def piece(index: Expr, offset: int) -> None:
            start = let(block * size + index * IN_REGISTERS)
            for i, x in enumerate(_butterflies(rotation, start, IN_REGISTERS, offset, source)):
                store(to, row, start + i * LANES, x, LANES)

        if rotation.seed is None:
            with T.serial(pieces) as index:
                piece(index, 0)
        else:  # each piece has signs of its own
            for number in range(pieces):
                piece(number, number * IN_REGISTERS)
        distance = IN_REGISTERS
        while distance < size:
            _between_places(rotation, block * size, distance, to, row)
            distance *= 2


def _between_places(
    rotation: Rotation, start: Expr, distance: int, to: Any, row: Sequence[Expr]
) -> None:
    is_last = 2 * distance == rotation.size
    with T.serial(rotation.size // (2 * distance)) as pair, T.serial(distance // LANES) as index:
        first = let(start + pair * (2 * distance) + index * LANES)
        a, b = (bound(to[(*row, at(first + i, LANES))]) for i in (0, distance))
        for place, x in ((first, a + b), (first + distance, a - b)):
            x = bound(x)
            scaled = x * like(x, "float32", float(rotation.factor)) if is_last else x
            store(to, row, place, scaled, LANES)


def hadamard_kernel(rotation: Rotation, k: int) -> Any:
    """PrimFunc(x f32 (M, k), y f32 (M, k)): y = x R, rows in parallel."""
    with kernel() as builder:
        m = tirx.Var("m", "int64")
        x, y = (T.arg(name, T.buffer((m, k), "float32")) for name in "xy")
        with root_block(), T.parallel(m) as row:
            IRBuilder.name("row", row)
            rotate_row(
                rotation, k, lambda start, valid: load(x, (row,), start, LANES, valid), y, (row,)
            )
    return builder.get()


def legalize_hadamard(builder: Any, call: Any) -> Any:
    """An `lbc.hadamard` that no quantize has taken: a kernel over its rows."""
    *lead, k = call.ty.shape.values
    rotation = rotation_of(call.attrs)
    rows = _product(lead)
    name = f"{rotation.name}_{int(k)}"
    function = builder.add_func(hadamard_kernel(rotation, int(k)), name)
    x = builder.emit(relax.op.reshape(call.args[0], [rows, k]))
    y = builder.emit(relax.call_tir(function, [x], relax.TensorType([rows, k], "float32")))
    return relax.op.reshape(y, call.ty.shape)


def _product(extents: Sequence[Expr]) -> Expr:
    total = tirx.const(1, "int64")
    for extent in extents:
        total = total * extent
    return sym.Analyzer().simplify(total)
