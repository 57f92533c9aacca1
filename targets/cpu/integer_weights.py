"""Weight operands of an integer GEMM: decoded from memory where they are used, some blocks into
registers, or a panel at a time.

A panel holds the operand bytes and the scales of a task's columns for some blocks. Decoding takes
about five instructions a vector: nothing for many rows, as much as the dot products for one. Few
rows would write and read a panel longer than they multiply. Codes of a byte are operands as they
lie in memory, and only their scales get a panel.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import decode, plain
from lbcompiler.targets.cpu.gemm import Place, Task
from lbcompiler.targets.cpu.integer_products import ONE_BITS, UseGroup
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    at,
    bits_of,
    bound,
    let,
    maximum,
    prefetch,
    reduce_max_unsigned,
    splat,
)
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS
from lbcompiler.targets.cpu.packed_weights import load_planes, load_scales

AHEAD = 64  # lines of a column's weights that are asked for before they are used: 4 KiB
SCALES_AHEAD = 32  # blocks whose scales are; those of one row are one stream, found without asking
LINES = 4  # of each column tile that are asked for in the time of a register tile


@dataclass(frozen=True)
class DirectWeights:
    """Packed weights, decoded where they are used."""

    isa: Isa
    fmt: BlockFormat
    block: int
    is_unsigned: bool
    planes: list[Any]
    scales: Any

    @property
    def groups(self) -> int:
        """k-groups that one load of each plane holds."""
        return decode.group_count(self.fmt.element)

    @property
    def loads(self) -> int:
        """Loads of each plane that make a block."""
        return self.block // (self.groups * self.isa.k_group)

    @property
    def operand_dtype(self) -> str:
        return "uint8" if self.is_unsigned else "int8"

    def each_group(self, place: Place, block: Expr, use: UseGroup) -> None:
        with T.serial(self.loads) as load:
            position = let(block * self.loads + load)
            self.ask_ahead(place.tile.columns, place.column, position)
            vectors = [
                self.operands(place.column, position, v) for v in range(place.vectors(self.isa))
            ]
            for group in range(self.groups):
                k = (load * self.groups + group) * self.isa.k_group
                use(k, [vector[group] for vector in vectors])

    def ask_ahead(self, columns: int, column: Expr, load: Expr) -> None:
        """Begin to bring in what is `AHEAD` lines away, at a column's end that of the next task."""
        if not self.isa.is_avx512:
            return
        for i, plane in enumerate(self.planes):
            count = 1 << (len(self.planes) - 1 - i)
            beyond = _beyond(plane, columns, load * count + AHEAD)
            for tile in range(columns):
                for j in range(count):
                    prefetch(plane[column + tile, beyond + j, 0], level=1)

    def ask_scales_ahead(self, columns: int, column: Expr, block: Expr) -> None:
        """The same for scales, `SCALES_AHEAD` blocks away."""
        if not self.isa.is_avx512:
            return
        index = block // (self.fmt.block // self.block)
        beyond = _beyond(self.scales, columns, index + SCALES_AHEAD)
        for tile in range(columns):
            prefetch(self.scales[column + tile, beyond, 0], level=1)

    def factors(self, place: Place, block: Expr) -> list[Expr]:
        return [bound(self.factor(place.column, block, v)) for v in range(place.vectors(self.isa))]

    def operands(self, column: Expr, load: Expr, v: int) -> list[Expr]:
        """Of the k-groups of one load, for vector v of the columns."""
        element = self.fmt.element
        stored = decode.stored_codes(element, load_planes(self.planes, column, load, v, self.isa))
        operands = [bound(decode.unsigned_operand(self.isa, element, code)) for code in stored]
        if self.is_unsigned:
            return operands
        width = self.isa.lanes * self.isa.k_group
        flip = splat(128, "uint8", width)
        return [bound(tirx.reinterpret(f"int8x{width}", operand ^ flip)) for operand in operands]

    def scale_bytes(self, column: Expr, block: Expr, v: int) -> Expr:
        index = block // (self.fmt.block // self.block)
        return load_scales(self.scales, column, index, v, self.isa)

    def factor(self, column: Expr, block: Expr, v: int) -> Expr:
        """The float32 scales of vector v's columns."""
        return decode.scale_value(self.isa, self.fmt.scale, self.scale_bytes(column, block, v))


def _beyond(packed: Any, columns: int, ahead: Expr) -> Expr:
    """Row `ahead` of a column tile; past its end, that of the tile `columns` further on."""
    rows = int(packed.shape[1])
    ahead = let(ahead)
    return let(tirx.Select(ahead >= rows, ahead + (columns - 1) * rows, ahead))


class HeldWeights:
    """The weights of a task's columns for `count` blocks from `first` on, decoded into registers.

    What the registers cannot hold the compiler keeps on the stack, in L1.
    """

    def __init__(self, weights: DirectWeights, task: Task, first: Expr, count: int) -> None:
        vectors = range(task.tile.columns * COLUMNS // weights.isa.lanes)
        self._k_group = weights.isa.k_group
        self._per_block = weights.block // weights.isa.k_group
        self._groups: list[list[Expr]] = []
        for load in range(count * weights.loads):
            position = let(first * weights.loads + load)
            weights.ask_ahead(task.tile.columns, task.column, position)
            held = [weights.operands(task.column, position, v) for v in vectors]
            self._groups += [[bound(o) for o in group] for group in zip(*held, strict=True)]
        weights.ask_scales_ahead(task.tile.columns, task.column, first)
        self._factors = [
            [bound(weights.factor(task.column, let(first + i), v)) for v in vectors]
            for i in range(count)
        ]

    def each_group(self, place: Place, block: int, use: UseGroup) -> None:
        first = block * self._per_block
        for group in range(self._per_block):
            use(group * self._k_group, self._groups[first + group])

    def factors(self, place: Place, block: int) -> list[Expr]:
        return self._factors[block]


class Panel:
    """The weights of a task's columns for `depth` blocks, decoded."""

    def __init__(self, weights: DirectWeights, task: Task, depth: int, may_be_plain: bool) -> None:
        self.weights, self.task, self.may_be_plain = weights, task, may_be_plain
        isa = weights.isa
        self.vectors = task.tile.columns * COLUMNS // isa.lanes
        self.width = isa.lanes * isa.k_group
        self.is_copied = weights.fmt.element.bits < 8 or not weights.is_unsigned
        self._first: Expr = 0
        if self.is_copied:
            shape = (depth * weights.block // isa.k_group, self.vectors * self.width)
            self.codes = T.alloc_buffer(shape, weights.operand_dtype)
        kind = "int32" if may_be_plain else "float32"
        self.scales = T.alloc_buffer((depth, self.vectors * isa.lanes), kind)
        if may_be_plain:
            self._unusual = Registers(1, "int32", isa.lanes)

    def decode(self, first: Expr, count: Expr) -> None:
        """Blocks `first` to below `first + count`."""
        weights, isa, column = self.weights, self.weights.isa, self.task.column
        self._first = first
        if self.is_copied:
            with T.serial(count * weights.loads) as load:
                for v in range(self.vectors):
                    operands = weights.operands(column, let(first * weights.loads + load), v)
                    for group, operand in enumerate(operands):
                        position = [load * weights.groups + group, at(v * self.width, self.width)]
                        T.buffer_store(self.codes, operand, position)
        if self.may_be_plain:
            self._unusual[0] = splat(0, "int32", isa.lanes)
        with T.serial(count) as i:
            for v in range(self.vectors):
                position = [i, at(v * isa.lanes, isa.lanes)]
                factor = weights.factor(column, let(first + i), v)
                if self.may_be_plain:
                    bits = bits_of(factor) - splat(ONE_BITS, "int32", isa.lanes)
                    stored = weights.scale_bytes(column, let(first + i), v)
                    self._unusual[0] = maximum(self._unusual[0], plain.distance(stored))
                    factor = bits
                T.buffer_store(self.scales, factor, position)

    def ask_for_next(self, place: Place, depth: int) -> None:
        """Begin to bring in the next panel, some of its lines for each register tile."""
        weights = self.weights
        if not weights.isa.is_avx512:
            return
        for i, plane in enumerate(weights.planes):
            loads = weights.loads << (len(weights.planes) - 1 - i)
            line = let((self._first + depth) * loads + place.number * LINES)
            for tile in range(place.tile.columns):
                for j in range(LINES):
                    prefetch(plane[place.column + tile, line + j, 0])

    def unusual(self) -> Expr:
        """Not 0 if a scale of the panel is not plain."""
        largest = reduce_max_unsigned(self._unusual[0])
        return tirx.Select(largest > plain.ADDED, tirx.const(1, "int32"), tirx.const(0, "int32"))

    def each_group(self, place: Place, block: Expr, use: UseGroup) -> None:
        weights, isa = self.weights, self.weights.isa
        groups = weights.block // isa.k_group
        for group in range(groups):
            vectors = [
                self._operand(place, let(block * groups + group), v) for v in range(self.vectors)
            ]
            use(group * isa.k_group, vectors)

    def _operand(self, place: Place, group: Expr, v: int) -> Expr:
        if self.is_copied:
            return let(self.codes[group, at(v * self.width, self.width)])
        first = self._first * (self.weights.block // self.weights.isa.k_group)
        planes = load_planes(self.weights.planes, place.column, first + group, v, self.weights.isa)
        return planes[0][0]

    def factors(self, place: Place, block: Expr) -> list[Expr]:
        lanes = self.weights.isa.lanes
        return [let(self.scales[block, at(v * lanes, lanes)]) for v in range(self.vectors)]
