"""GEMM of two formats whose codes are small integers: exact int8 block dot products, one float FMA
a block.

    for block in K / block, ascending:
        sums = starts[row, block]                             -zero point * sum of the row's block
        sums += unsigned weights . activations                exact in int32
        accumulator = fma(float(sums), weight scale * activation scale, accumulator)

Weights are the unsigned operand (the zero point added, or built into a look-up), activations the
signed one. What the zero point adds is taken off by the start values, which come with the
activations from `quantize`: it costs nothing here. The activation scale holds the inverse of the
elements' multipliers, so that the sums need no scaling of their own. Where the blocks of the two
formats differ, a block of the loop is the shorter one of them.
"""

from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat, Element
from lbcompiler.targets.cpu import decode
from lbcompiler.targets.cpu.gemm import Config, Output, Place, Tile, chunk_rows, emit_gemm, tallest
from lbcompiler.targets.cpu.intrinsics import (
    Expr,
    activation_group,
    at,
    bound,
    cast,
    dot,
    dot_takes_unsigned,
    fma,
    kernel,
    let,
    root_block,
    splat,
)
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, Isa
from lbcompiler.targets.cpu.layout import COLUMNS, padded, plane_shapes, tiles

CHUNK_BYTES = 1 << 18  # of a task's activations: a quarter of a Zen 4 core's L2


@dataclass(frozen=True)
class IntegerGemm:
    """The generator for one pair of formats and one instruction set."""

    isa: Isa
    weight: BlockFormat
    act: BlockFormat

    @property
    def block(self) -> int:
        """k's that share both scales."""
        return gcd(self.weight.block, self.act.block)

    @property
    def zero_point(self) -> int:
        """What stands for zero in the weight operand."""
        return decode.zero_point(self.weight.element) if self._is_unsigned else 0

    @property
    def _is_unsigned(self) -> bool:
        limit = int(self.act.element.max * multiplier(self.act.element))
        return dot_takes_unsigned(self.isa, decode.unsigned_limit(self.weight.element), limit)

    def config(self, n: int, k: int) -> Config:
        """The default tiles for a shape."""
        shapes = {
            AVX512_VNNI: (Tile(tallest(k), 1), Tile(4, 2), Tile(1, 4)),
            AVX2: (Tile(4, 1), Tile(1, 2)),
        }.get(self.isa, (Tile(2, 1), Tile(1, 1)))
        return Config(shapes, chunk_rows(k, n, CHUNK_BYTES))

    def build(
        self, n: int, k: int, *, bias: bool, epilogue: str, config: Config | None = None
    ) -> Any:
        """PrimFunc(a, a_scales, starts[, row_scales], planes.., w_scales[, w_tensor_scale][, bias],
        y).

        a int8 (M, Kp), a_scales f32 (M, ceil(K / act.block)), starts int32 (M, Kp / block),
        row_scales f32 (M, 1), planes and w_scales as layout.py has them, w_tensor_scale f32 (1,),
        bias f32 (n,), y f32 (M, n).
        """
        with kernel() as builder:
            self._emit(n, k, bias, epilogue, config or self.config(n, k))
        return builder.get()

    def _emit(self, n: int, k: int, bias: bool, epilogue: str, config: Config) -> None:
        m = tirx.Var("m", "int64")
        blocks = -(-k // self.block)
        a = T.arg("a", T.buffer((m, blocks * self.block), "int8"))
        a_scales = T.arg("a_scales", T.buffer((m, self.act.blocks(k)), "float32"))
        starts = T.arg("starts", T.buffer((m, blocks), "int32"))
        scales = []
        if self.act.has_tensor_scale:
            scales.append((T.arg("row_scales", T.buffer((m, 1), "float32")), True))
        planes, w_scales = weight_arguments(self.weight, n, k, self.isa.k_group)
        if self.weight.has_tensor_scale:
            scales.append((T.arg("w_tensor_scale", T.buffer((1,), "float32")), False))
        b = T.arg("bias", T.buffer((n,), "float32")) if bias else None
        y = T.arg("y", T.buffer((m, n), "float32"))

        def body(place: Place) -> None:
            sums = self._allocate(place)
            with T.serial(blocks) as block:
                IRBuilder.name("block", block)
                for r in range(place.tile.rows):
                    start = let(splat(starts[place.row + r, block], "int32", self.isa.lanes))
                    for v in range(self._vectors(place)):
                        T.buffer_store(sums, start, [place.slot(self.isa, r, v)])
                self._add_products(place, block, sums, planes, a)
                factors = self._factors(place, block, w_scales)
                self._accumulate(place, sums, factors, a_scales, block)

        output = Output(y, n, tuple(scales), b, epilogue)
        with root_block():
            emit_gemm(self.isa, config, m, output, lambda _tile, _column: body)

    def _vectors(self, place: Place) -> int:
        return place.tile.columns * COLUMNS // self.isa.lanes

    def _allocate(self, place: Place) -> Any:
        size = place.tile.rows * place.tile.columns * COLUMNS
        return T.alloc_buffer((size,), "int32", scope="local")

    def _add_products(
        self, place: Place, block: Expr, sums: Any, planes: list[Any], a: Any
    ) -> None:
        """To the sums the int32 dot products of one block."""
        groups = decode.group_count(self.weight.element)
        steps = self.block // (groups * self.isa.k_group)
        with T.serial(steps) as s:
            step = let(block * steps + s)
            operands = [
                self._operands(load_planes(planes, place.column, step, v, self.isa))
                for v in range(self._vectors(place))
            ]
            for group in range(groups):
                k = (step * groups + group) * self.isa.k_group
                for r in range(place.tile.rows):
                    activations = let(activation_group(self.isa, a, place.row + r, k))
                    for v, operand in enumerate(operands):
                        slot = place.slot(self.isa, r, v)
                        total = dot(self.isa, sums[slot], operand[group], activations)
                        T.buffer_store(sums, total, [slot])

    def _operands(self, planes: list[list[Expr]]) -> list[Expr]:
        element = self.weight.element
        stored = decode.stored_codes(element, planes)
        operands = [bound(decode.unsigned_operand(self.isa, element, code)) for code in stored]
        if self._is_unsigned:
            return operands
        flip = splat(128, "uint8", self.isa.lanes * self.isa.k_group)
        return [bound(tirx.reinterpret("int8x32", operand ^ flip)) for operand in operands]

    def _factors(self, place: Place, block: Expr, w_scales: Any) -> list[Expr]:
        """The weights' scales of one block, a vector for each of columns."""
        index = block // (self.weight.block // self.block)
        return [
            bound(
                decode.scale_value(
                    self.weight.scale, load_scales(w_scales, place.column, index, v, self.isa)
                )
            )
            for v in range(self._vectors(place))
        ]

    def _accumulate(
        self, place: Place, sums: Any, factors: list[Expr], a_scales: Any, block: Expr
    ) -> None:
        index = block // (self.act.block // self.block)
        for r in range(place.tile.rows):
            scale = let(splat(a_scales[place.row + r, index], "float32", self.isa.lanes))
            for v, factor in enumerate(factors):
                slot = place.slot(self.isa, r, v)
                value = cast("float32", sums[slot])
                total = fma(value, factor * scale, place.accumulators[slot])
                T.buffer_store(place.accumulators, total, [slot])


def multiplier(element: Element) -> int:
    """The element's integer multiplier, of one that has it."""
    value = element.integer_multiplier
    if value is None:
        raise ValueError(f"{element.name} codes are no small integers")
    return value


def weight_arguments(fmt: BlockFormat, n: int, k: int, group: int) -> tuple[list[Any], Any]:
    """Declares the planes and the scales of packed weights as the function's next arguments."""
    shapes = plane_shapes(n, padded(k, fmt.block), fmt.element.bits, group)
    planes = [T.arg(f"w_codes_{i}", T.buffer(shape, "uint8")) for i, shape in enumerate(shapes)]
    return planes, T.arg("w_scales", T.buffer((tiles(n), fmt.blocks(k), COLUMNS), "uint8"))


def load_planes(
    planes: list[Any], column: Expr, step: Expr, v: int, isa: Isa, group: int = 0
) -> list[list[Expr]]:
    """Byte vectors of each plane for k-groups from `step` loads on: one of the last plane, two
    before it.
    """
    group = group or isa.k_group
    width = isa.lanes * group
    tile, start = divmod(v * isa.lanes, COLUMNS)
    loaded = []
    for i, plane in enumerate(planes):
        count = 1 << (len(planes) - 1 - i)
        loaded.append(
            [
                let(plane[column + tile, step * count + j, at(start * group, width)])
                for j in range(count)
            ]
        )
    return loaded


def load_scales(w_scales: Any, column: Expr, index: Expr, v: int, isa: Isa) -> Expr:
    """The scale bytes of vector v's columns."""
    tile, start = divmod(v * isa.lanes, COLUMNS)
    return w_scales[column + tile, index, at(start, isa.lanes)]
