"""The products of one register tile in an integer GEMM: dot products of a block, then its scales.

Written once for weights that come from memory and for those of a decoded panel: both say which
vectors a k-group has, and which factor a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat, Element
from lbcompiler.targets.cpu.gemm import Place, Task
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    Registers,
    activation_group,
    bits_of,
    cast,
    dot,
    fma,
    let,
    real_of,
    splat,
)
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.plain import flagged

ONE_BITS = 127 << 23  # of float32 1.0: its biased exponent

UseGroup = Callable[[Expr, list[Expr]], None]  # (k of the group within its block, weight vectors)


class Weights(Protocol):
    """`each_group` emits a block's k-groups; `factors` are its scales, a vector for 16 columns.

    Factors are float32, or where exponents may be added int32: the float's bits less those of 1.0.
    `block` counts from the first of `Products.add`, which for weights that are no panel is block 0.
    """

    def each_group(self, place: Place, block: Expr, use: UseGroup) -> None: ...

    def factors(self, place: Place, block: Expr) -> list[Expr]: ...


@dataclass(frozen=True)
class Activations:
    """What `quantize` made; `flags` tells rows that are not plain, where that matters."""

    isa: Isa
    fmt: BlockFormat
    block: int
    values: Any
    scales: Any
    starts: Any
    flags: Any = None

    def unusual(self, task: Task) -> Expr:
        """Not 0 if a row of the task is not plain."""
        return flagged(task, self.flags)

    def scale(self, row: Expr, block: Expr) -> Expr:
        return self.scales[row, block // (self.fmt.block // self.block)]


@dataclass(frozen=True)
class Products:
    """`add` emits sum = fma(block's dot product, weight scale * activation scale, sum)."""

    activations: Activations
    weights: Weights
    is_plain: bool

    @property
    def isa(self) -> Isa:
        return self.activations.isa

    def add(self, place: Place, first: Expr, count: Expr) -> None:
        """Blocks `first` to below `first + count`, ascending."""
        products = self._registers(place)
        with T.serial(count) as i:
            IRBuilder.name("block", i)
            self._add_block(place, products, let(first + i), i)

    def add_unrolled(self, place: Place, first: Expr, count: int) -> None:
        """The same without a loop, for weights that are in registers."""
        products = self._registers(place)
        for i in range(count):
            self._add_block(place, products, let(first + i), i)

    def _registers(self, place: Place) -> Registers:
        return Registers(place.tile.rows * place.vectors(self.isa), "int32", self.isa.lanes)

    def _add_block(self, place: Place, products: Registers, block: Expr, i: Expr) -> None:
        """Block number `block` of K, which is number i of the weights."""
        self._start(place, products, block)
        self.weights.each_group(
            place, i, lambda k, vectors: self._dot(place, products, block, k, vectors)
        )
        self._accumulate(place, products, block, self.weights.factors(place, i))

    def _start(self, place: Place, products: Registers, block: Expr) -> None:
        for r in range(place.tile.rows):
            start = self.activations.starts[place.row + r, block]
            start = let(splat(start, "int32", self.isa.lanes))
            for v in range(place.vectors(self.isa)):
                products[place.slot(self.isa, r, v)] = start

    def _dot(
        self, place: Place, products: Registers, block: Expr, k: Expr, vectors: list[Expr]
    ) -> None:
        values = self.activations.values
        for r in range(place.tile.rows):
            at = block * self.activations.block + k
            group = let(activation_group(self.isa, values, place.row + r, at))
            for v, weight in enumerate(vectors):
                slot = place.slot(self.isa, r, v)
                products[slot] = dot(self.isa, products[slot], weight, group)

    def _accumulate(
        self, place: Place, products: Registers, block: Expr, factors: list[Expr]
    ) -> None:
        for r in range(place.tile.rows):
            scale = self.activations.scale(place.row + r, block)
            scale = let(splat(scale, "float32", self.isa.lanes))
            for v, factor in enumerate(factors):
                slot = place.slot(self.isa, r, v)
                value = cast("float32", products[slot])
                place.sums[slot] = fma(value, self._scale(factor, scale), place.sums[slot])

    def _scale(self, factor: Expr, scale: Expr) -> Expr:
        if not str(factor.ty.dtype).startswith("int32"):
            return factor * scale
        if self.is_plain:
            return real_of(factor + bits_of(scale))
        return real_of(factor + splat(ONE_BITS, "int32", self.isa.lanes)) * scale


def multiplier(element: Element) -> int:
    """The element's integer multiplier, of one that has it."""
    value = element.integer_multiplier
    if value is None:
        raise ValueError(f"{element.name} codes are no small integers")
    return value
