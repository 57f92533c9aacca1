"""A panel of weights as AMX reads them: integers in bfloat16, a row of a tile for every two k's.

A load of packed weights holds whole groups of eight k's. The two k's of a pair are those that lie
in 16-bit words side by side: 0 and 2, 4 and 6, 1 and 3, 5 and 7 in the four rows that eight k's
make. So a nibble is moved to its word's low end by one shift, and its bfloat16 is looked up there.
"""

from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats import Element
from lbcompiler.targets.cpu import decode, plain
from lbcompiler.targets.cpu.gemm import Task
from lbcompiler.targets.cpu.integer_weights import DirectWeights
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    at,
    bits_of,
    bound,
    call,
    cast,
    let,
    like,
    maximum,
    prefetch,
    reduce_max_unsigned,
    shift_right,
    splat,
    vector,
)
from lbcompiler.targets.cpu.layout import COLUMNS, offset_mask
from lbcompiler.targets.cpu.packed_weights import load_planes

WORDS = 32  # of 16 bits in a row of a tile
LINES = 12  # of the next panel that are asked for in the time of a register tile
_TOP = 24  # bits below the uppermost byte of a word


class TilePanel:
    """codes int16 (columns, depth * block * 16), factors float32 (columns, depth * 16).

    A tile of weights is `codes` times what is left to `factors`, the scales with `unit` divided
    out.
    """

    def __init__(self, weights: DirectWeights, task: Task, depth: int) -> None:
        self.weights, self.task, self.depth = weights, task, depth
        count = task.tile.columns
        self._is_looked_up = weights.fmt.element.bits == 4
        self.codes = T.alloc_buffer((count, depth * weights.block * COLUMNS), "int16")
        self.factors = T.alloc_buffer((count, depth * COLUMNS), "float32")

    def decode(self, first: Expr, count: Expr) -> None:
        """Blocks `first` to below `first + count`, from the panel's start on."""
        weights = self.weights
        loads = 2 if weights.groups == 1 else 1  # that make eight k's or more
        width = loads * weights.groups * weights.isa.k_group * COLUMNS
        with T.serial(self.task.tile.columns) as j:
            column = let(self.task.column + j)
            with T.serial(count * (weights.loads // loads)) as i:
                start = let((first * (weights.loads // loads) + i) * loads)
                rows = self._rows(column, start, loads)
                for number, row in enumerate(rows):
                    lanes = at(i * width + number * WORDS, WORDS)
                    T.buffer_store(self.codes, row, [j, lanes])
            unit = 1.0 if self._is_looked_up else 2.0**-_TOP
            with T.serial(count) as i:
                factor = weights.factor(column, let(first + i), 0)
                value = factor * like(factor, "float32", unit)
                T.buffer_store(self.factors, value, [j, at(i * COLUMNS, COLUMNS)])

    def clear(self, position: Expr) -> None:
        """Block `position` of the panel becomes zeros."""
        size = self.weights.block * COLUMNS
        with T.serial(self.task.tile.columns) as j:
            for i in range(0, size, WORDS):
                lanes = at(position * size + i, WORDS)
                T.buffer_store(self.codes, splat(0, "int16", WORDS), [j, lanes])
            lanes = at(position * COLUMNS, COLUMNS)
            T.buffer_store(self.factors, splat(0.0, "float32", COLUMNS), [j, lanes])

    def ask_for_next(self, first: Expr, j: Expr, i: Expr) -> None:
        """Begin to bring in what follows the panel that starts with block `first`: some lines of
        column tile j for each row tile i.
        """
        weights = self.weights
        for number, plane in enumerate(weights.planes):
            loads = weights.loads << (len(weights.planes) - 1 - number)
            line = let((first + self.depth) * loads + i * LINES)
            for ahead in range(LINES):
                prefetch(plane[self.task.column + j, line + ahead, 0])

    def first(self, j: Expr, block: Expr) -> Any:
        """The first element of the tile of column tile j."""
        return self.codes[j, block * (self.weights.block * COLUMNS)]

    def factor(self, j: Expr, block: Expr) -> Expr:
        """What the products of 16 columns are multiplied with."""
        return self.factors[j, at(block * COLUMNS, COLUMNS)]

    def _rows(self, column: Expr, start: Expr, loads: int) -> list[Expr]:
        """The rows that some loads make, in their order: int16x32."""
        weights = self.weights
        element, halves, rows = weights.fmt.element, [], []
        for i in range(loads):
            planes = load_planes(weights.planes, column, start + i, 0, weights.isa)
            if self._is_looked_up:
                return _looked_up(element, planes[0][0])
            halves += [_converted(weights, code) for code in decode.stored_codes(element, planes)]
        for i in range(0, len(halves), 2):
            (a, c), (b, d) = halves[i], halves[i + 1]
            rows += [a, b, c, d]
        return rows


def unusual(weights: DirectWeights, task: Task, blocks: int) -> Expr:
    """Not 0 if a scale of the task's columns is not plain; of power of two scales."""
    found = Registers(1, "int32", COLUMNS)
    found[0] = splat(0, "int32", COLUMNS)
    with T.serial(task.tile.columns) as j, T.serial(blocks) as i:
        stored = weights.scale_bytes(task.column + j, i, 0)
        found[0] = maximum(found[0], plain.distance(stored))
    largest = reduce_max_unsigned(found[0])
    return tirx.Select(largest > plain.ADDED, tirx.const(1, "int32"), tirx.const(0, "int32"))


def _looked_up(element: Element, packed: Expr) -> list[Expr]:
    """Of 64 bytes of nibbles: one `vpermw` a row, which looks at no more than five bits."""
    flipped = np.arange(2 * COLUMNS) % COLUMNS ^ offset_mask(element)
    values = element.values[flipped] * decode.divisor(element)
    words = np.ascontiguousarray(values, np.float32).view(np.uint16)[1::2].copy().view(np.int32)
    table = tirx.reinterpret(
        f"int16x{WORDS}", vector([tirx.const(int(word), "int32") for word in words])
    )
    words16 = let(tirx.reinterpret(f"uint16x{WORDS}", packed))
    rows = []
    for shift in (0, 4, 8, 12):
        moved = words16 if shift == 0 else words16 >> splat(shift, "uint16", WORDS)
        index = tirx.reinterpret(f"int16x{WORDS}", moved)
        rows.append(bound(call(f"int16x{WORDS}", "llvm.x86.avx512.permvar.hi.512", table, index)))
    return rows


def _converted(weights: DirectWeights, code: Expr) -> tuple[Expr, Expr]:
    """Of a k-group's codes: the pairs (0, 2) and (1, 3), 2^24 times as large."""
    element, isa = weights.fmt.element, weights.isa
    operand = bound(decode.unsigned_operand(isa, element, code))
    signed = operand - like(operand, "uint8", decode.zero_point(element))
    word = bound(tirx.reinterpret(f"int32x{COLUMNS}", signed))
    top = like(word, "int32", -(1 << _TOP))

    def value(k: int) -> Expr:
        moved = word if k == 3 else word << like(word, "int32", _TOP - 8 * k)
        return bits_of(bound(cast("float32", moved & top if k else moved)))

    pairs = [bound(value(high) | shift_right(value(low), 16)) for low, high in ((0, 2), (1, 3))]
    a, b = (tirx.reinterpret(f"int16x{WORDS}", pair) for pair in pairs)
    return a, b
