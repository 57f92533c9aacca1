"""A panel of weights as AMX reads them: code * scale in bfloat16, a row of a tile for two k's.

A load of packed weights holds whole groups of eight k's. The two k's of a pair are those that lie
in 16-bit words side by side: 0 and 2, 4 and 6, 1 and 3, 5 and 7 in the four rows that eight k's
make. So a nibble is moved to its word's low end by one shift, and its bfloat16 is looked up there;
a scale that is a power of two is added to the exponent of what was found. Other scales, and codes
of more bits, take the way over float32.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats import Element
from lbcompiler.targets.cpu import decode
from lbcompiler.targets.cpu.gemm import Task
from lbcompiler.targets.cpu.integer_weights import DirectWeights
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    at,
    bits_of,
    bound,
    call,
    cast,
    let,
    like,
    look_up_float,
    shift_right,
    splat,
)
from lbcompiler.targets.cpu.layout import COLUMNS, offset_mask
from lbcompiler.targets.cpu.packed_weights import load_planes

WORDS = 32  # of 16 bits in a row of a tile
PAIRS = ((0, 2), (1, 3))  # of the four k's in a word of 32 bits
_TOP = 24  # bits below the uppermost byte of a word


@dataclass(frozen=True)
class TilePanel:
    """codes int16 (span, depth * block * 16): the bits of bfloat16; see `gemm_tiles.Panel`."""

    weights: DirectWeights
    task: Task
    depth: int
    codes: Any

    @classmethod
    def hold(cls, weights: DirectWeights, task: Task, depth: int, span: int) -> "TilePanel":
        """For `depth` of K's blocks and `span` column tiles."""
        shape = (span, depth * weights.block * COLUMNS)
        return cls(weights, task, depth, T.alloc_buffer(shape, "int16"))

    def decode(self, panel: Expr, count: Expr, j: Expr, columns: int) -> None:
        """Makes `count` blocks of a panel, for `columns` column tiles of the task from j on."""
        width = self._loads * self.weights.groups * self.weights.isa.k_group * COLUMNS
        with T.serial(columns) as v, T.serial(count) as block:
            column = bound(self.task.column + j + v)
            number = bound(panel * self.depth + block)
            scale = self._scale(column, number)
            for step in range(self._steps):
                start = bound((number * self._steps + step) * self._loads)
                first = bound((block * self._steps + step) * width)
                for i, row in enumerate(self._rows(column, start, scale)):
                    T.buffer_store(self.codes, row, [v, at(first + i * WORDS, WORDS)])

    def first(self, v: int, block: Expr) -> Any:
        """The first element of the tile of column tile j + v."""
        return self.codes[v, block * (self.weights.block * COLUMNS)]

    @property
    def _loads(self) -> int:
        """Loads that make eight k's or more."""
        return 2 if self.weights.groups == 1 else 1

    @property
    def _steps(self) -> int:
        """Of `_loads` loads in a block."""
        return self.weights.loads // self._loads

    @property
    def _adds_exponents(self) -> bool:
        fmt = self.weights.fmt
        return fmt.element.bits == 4 and fmt.scale == "e8m0"

    def _scale(self, column: Expr, block: Expr) -> Expr:
        """Of 16 columns: what is added to words, int16x32, or what floats are multiplied with."""
        weights = self.weights
        if not self._adds_exponents:
            unit = 1.0 if weights.fmt.element.bits == 4 else 2.0**-_TOP
            factor = weights.factor(column, block, 0)
            return bound(factor * like(factor, "float32", unit))
        return decode.exponents_of_words(weights.scale_bytes(column, block, 0))

    def _rows(self, column: Expr, start: Expr, scale: Expr) -> list[Expr]:
        """The rows that `_loads` loads make, in their order: int16x32."""
        weights = self.weights
        element, halves = weights.fmt.element, []
        for i in range(self._loads):
            planes = load_planes(weights.planes, column, start + i, 0, weights.isa)
            if self._adds_exponents:
                return [decode.raised(row, scale) for row in _words(element, planes[0][0])]
            if element.bits == 4:
                halves += _nibbles(element, planes[0][0], scale)
            else:
                codes = decode.stored_codes(element, planes)
                halves += [_converted(weights, code, scale) for code in codes]
        rows = []
        for i in range(0, len(halves), 2):
            (a, c), (b, d) = halves[i], halves[i + 1]
            rows += [a, b, c, d]
        return rows


def _table(element: Element) -> Any:
    """Of the 16 stored nibbles: their values times `decode.divisor`, float32, and no -0."""
    flipped = np.arange(COLUMNS) ^ offset_mask(element)
    values = element.values[flipped] * decode.divisor(element) + 0.0
    return np.ascontiguousarray(values, np.float32)


def _words(element: Element, packed: Expr) -> list[Expr]:
    """Of 64 bytes of nibbles: one `vpermw` a row, which looks at no more than five bits."""
    table = tirx.reinterpret(f"int16x{WORDS}", decode.word_table(np.tile(_table(element), 2)))
    words16 = let(tirx.reinterpret(f"uint16x{WORDS}", packed))
    rows = []
    for shift in (0, 4, 8, 12):
        moved = words16 if shift == 0 else words16 >> splat(shift, "uint16", WORDS)
        index = tirx.reinterpret(f"int16x{WORDS}", moved)
        rows.append(bound(call(f"int16x{WORDS}", "llvm.x86.avx512.permvar.hi.512", table, index)))
    return rows


def _nibbles(element: Element, packed: Expr, scale: Expr) -> list[tuple[Expr, Expr]]:
    """Of 64 bytes of nibbles, the low ones and the high ones: the pairs (0, 2) and (1, 3)."""
    word = bound(tirx.reinterpret(f"int32x{COLUMNS}", packed))
    table = [float(value) for value in _table(element)]

    def value(bit: int) -> Expr:
        moved = word if bit == 0 else shift_right(word, bit)
        return bits_of(bound(look_up_float(table, moved) * scale))

    return [
        tuple(_pair(value(8 * low + half), value(8 * high + half)) for low, high in PAIRS)
        for half in (0, 4)
    ]


def _converted(weights: DirectWeights, code: Expr, scale: Expr) -> tuple[Expr, Expr]:
    """Of a k-group's codes: the pairs (0, 2) and (1, 3); scale has 2^-24 in it."""
    element, isa = weights.fmt.element, weights.isa
    operand = bound(decode.unsigned_operand(isa, element, code))
    signed = operand - like(operand, "uint8", decode.zero_point(element))
    word = bound(tirx.reinterpret(f"int32x{COLUMNS}", signed))
    top = like(word, "int32", -(1 << _TOP))

    def value(k: int) -> Expr:
        moved = word if k == 3 else word << like(word, "int32", _TOP - 8 * k)
        return bits_of(bound(cast("float32", moved & top if k else moved) * scale))

    a, b = (_pair(value(low), value(high)) for low, high in PAIRS)
    return a, b


def _pair(low: Expr, high: Expr) -> Expr:
    """The upper halves of two words as one: int16x32."""
    return bound(tirx.reinterpret(f"int16x{WORDS}", high | shift_right(low, 16)))
