"""GEMM of two formats whose codes are small integers: exact int8 block dot products, one float FMA
a block.

    for block in K / block, ascending:
        products = starts[row, block]                         -zero point * sum of the row's block
        products += unsigned weights . activations            exact in int32
        sum = fma(float(products), weight scale * activation scale, sum)

Weights are the unsigned operand (the zero point added, or built into a look-up), activations the
signed one. What the zero point adds is taken off by the start values, which come with the
activations from `quantize`: it costs nothing here. The activation scale holds the inverse of the
elements' multipliers, so that the products need no scaling of their own. Where the blocks of the
two formats differ, a block of the loop is the shorter one of them.

Dot products, multiplications and FMAs share two pipes on Zen 4 and 5. A block of 32 needs 8 dot
products and one FMA there, and the multiplication of the two scales would be a tenth. Where both
are powers of two it is an addition of exponents instead, which other pipes do. That is exact while
the exponents stay small (`plain.ADDED`): a panel or a chunk of rows with one that is
larger, or with NaN, takes a second loop that multiplies.
"""

from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu import amx, decode, plain
from lbcompiler.targets.cpu.gemm import (
    SMALL_M,
    Choices,
    Config,
    EachTile,
    Output,
    Place,
    Task,
    Tile,
    Way,
    each_part,
    emit_gemm,
    one_by_one,
    space,
)
from lbcompiler.targets.cpu.gemm_tiles import CHOICES as TILE_CHOICES
from lbcompiler.targets.cpu.gemm_tiles import Rows, TileGemm, tile_config, tile_ways
from lbcompiler.targets.cpu.integer_products import Activations, Products, multiplier
from lbcompiler.targets.cpu.integer_weights import DirectWeights, HeldWeights, Panel
from lbcompiler.targets.cpu.intrinsics import Expr, dot_takes_unsigned, kernel, let, root_block
from lbcompiler.targets.cpu.isa import AVX2, AVX512_AMX, AVX512_BF16, AVX512_VNNI, GENERIC, Isa
from lbcompiler.targets.cpu.layout import row_stride
from lbcompiler.targets.cpu.packed_weights import weight_arguments
from lbcompiler.targets.cpu.tile_activations import packed
from lbcompiler.targets.cpu.tile_weights import TilePanel

SIGNIFICANDS = {"e8m0": 1, "e4m3": 15}  # the largest of a scale, as an integer
FLOAT32_BITS = 24  # of a significand
HELD = 32  # k's whose weights are held in registers for few rows
CHOICES = {
    **dict.fromkeys(
        (AVX512_BF16, AVX512_VNNI),
        Choices(
            (3, 4, 6, 8, 12),
            (1, 2, 3, 4),
            Config(rows=4, columns=3, depth=512, chunk=256, few_columns=2, small_columns=1),
        ),
    ),
    AVX512_AMX: TILE_CHOICES,
    AVX2: Choices(
        (2, 4, 6),
        (1, 2),
        Config(rows=4, columns=1, depth=512, chunk=64, few_columns=1, small_columns=1),
    ),
    GENERIC: Choices(
        (1, 2, 4),
        (1, 2),
        Config(rows=2, columns=1, depth=512, chunk=64, few_columns=1, small_columns=1),
    ),
}


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
    def adds_exponents(self) -> bool:
        """Whether both scales are powers of two, which are multiplied by adding exponents."""
        return self.weight.scale == self.act.scale == "e8m0"

    @property
    def has_flags(self) -> bool:
        """Whether `quantize` flags rows whose scales are not plain."""
        return self.adds_exponents or (self.takes_tiles and self.act.scale == "e8m0")

    @property
    def takes_tiles(self) -> bool:
        """Whether AMX multiplies many rows: a block is a tile, and its sums are exact."""
        fits = self.block in amx.DEPTHS and exact_bits(self.weight, self.act) <= FLOAT32_BITS
        return self.isa.has_tiles and fits

    @property
    def _is_unsigned(self) -> bool:
        limit = int(self.act.element.max * multiplier(self.act.element))
        return dot_takes_unsigned(self.isa, decode.unsigned_limit(self.weight.element), limit)

    def config(self, n: int, k: int) -> Config:
        """The default for a shape."""
        default = CHOICES[self.isa].default
        return tile_config(default, n, k) if self.takes_tiles else default

    def space(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        """The fields of `Config` that matter for M rows, and what is worth trying."""
        return space(replace(CHOICES[self.isa], default=self.config(n, k)), m, k)

    def build(
        self, n: int, k: int, *, bias: bool, epilogue: str, config: Config | None = None
    ) -> Any:
        """PrimFunc(a, a_scales, starts[, flags][, row_scales], planes.., w_scales
        [, w_tensor_scale][, bias], y).

        a int8 (M, row_stride(Kp)), a_scales f32 (M, ceil(K / act.block)), starts int32 (M, Kp /
        block), flags int32 (M, 1), row_scales f32 (M, 1), planes and w_scales as layout.py has
        them, w_tensor_scale f32 (1,), bias f32 (n,), y f32 (M, n).
        """
        with kernel() as builder:
            self._emit(n, k, bias, epilogue, config or self.config(n, k))
        return builder.get()

    def _emit(self, n: int, k: int, bias: bool, epilogue: str, config: Config) -> None:
        m = tirx.Var("m", "int64")
        blocks = -(-k // self.block)
        a = T.arg("a", T.buffer((m, row_stride(blocks * self.block)), "int8"))
        a_scales = T.arg("a_scales", T.buffer((m, self.act.blocks(k)), "float32"))
        starts = T.arg("starts", T.buffer((m, blocks), "int32"))
        flags = T.arg("flags", T.buffer((m, 1), "int32")) if self.has_flags else None
        row_scales = w_tensor_scale = None
        if self.act.has_tensor_scale:
            row_scales = T.arg("row_scales", T.buffer((m, 1), "float32"))
        planes, w_scales = weight_arguments(self.weight, n, k, self.isa.k_group)
        if self.weight.has_tensor_scale:
            w_tensor_scale = T.arg("w_tensor_scale", T.buffer((1,), "float32"))
        b = T.arg("bias", T.buffer((n,), "float32")) if bias else None
        y = T.arg("y", T.buffer((m, n), "float32"))
        activations = Activations(self.isa, self.act, self.block, a, a_scales, starts, flags)
        direct = DirectWeights(
            self.isa, self.weight, self.block, self._is_unsigned, planes, w_scales
        )
        step = max(self.weight.block, self.act.block) // self.block
        depth = max(step, min(config.depth // self.block, blocks) // step * step)

        together = max(step, HELD // self.block)

        def one(_task: Task, each_tile: EachTile) -> None:
            products = Products(activations, direct, is_plain=False)
            each_tile(lambda place: products.add(place, 0, blocks))

        def few(task: Task, each_tile: EachTile) -> None:
            _emit_held(task, each_tile, activations, direct, blocks, together)

        def many(task: Task, each_tile: EachTile) -> None:
            _emit_panels(task, each_tile, activations, direct, blocks, depth)

        if self.takes_tiles:
            ways = _tile_ways(m, activations, direct, blocks, depth, config)
        else:
            tile = Tile(config.rows, config.columns)
            ways = [Way(max(SMALL_M, tile.rows), tile, config.chunk, many)]
        if ways[-1].tile.rows > 1:  # the tile of one row has no tail
            ways.append(Way(2, Tile(1, config.few_columns), SMALL_M, few))
            ways.append(Way(1, Tile(1, config.small_columns), 1, one))
        with root_block():
            emit_gemm(self.isa, m, Output(y, n, row_scales, w_tensor_scale, b, epilogue), ways)


def exact_bits(weight: BlockFormat, act: BlockFormat) -> int:
    """Bits of the significand that hold any sum of products over a block of both formats."""
    largest = gcd(weight.block, act.block)
    for fmt in (weight, act):
        largest *= int(fmt.element.max * multiplier(fmt.element)) * SIGNIFICANDS[fmt.scale]
    return largest.bit_length()


def _tile_ways(
    m: Expr,
    activations: Activations,
    weights: DirectWeights,
    blocks: int,
    depth: int,
    config: Config,
) -> list[Way]:
    """For SMALL_M rows and more, by AMX; tasks with scales that are not plain by dot products."""

    def by_tiles(gemm: TileGemm, rows: Rows, task: Task) -> None:
        gemm.emit(rows, TilePanel.hold(weights, task, depth, gemm.span), task)

    def inside(gemm: TileGemm, rows: Rows, task: Task) -> None:
        unusual = tirx.const(0, "int32")
        if activations.flags is not None:
            unusual = unusual | activations.unusual(task)
        if weights.fmt.scale == "e8m0":
            unusual = unusual | plain.unusual(weights.isa, weights.scales, task)
        if isinstance(unusual, tirx.IntImm):
            by_tiles(gemm, rows, task)
            return
        products = Products(activations, weights, is_plain=False)
        with T.If(unusual == 0):
            with T.Then():
                by_tiles(gemm, rows, task)
            with T.Else():
                one_by_one(task, lambda place: products.add(place, 0, blocks))

    pack = partial(packed, activations, m)
    return tile_ways(config, weights.block, blocks, depth, SMALL_M, pack, inside)


def _emit_held(
    task: Task,
    each_tile: EachTile,
    activations: Activations,
    weights: DirectWeights,
    blocks: int,
    together: int,
) -> None:
    """All of K, `together` blocks at a time, which stay in registers for all rows of the task."""

    def emit(first: Expr, count: int) -> None:
        products = Products(activations, HeldWeights(weights, task, first, count), is_plain=False)
        each_tile(lambda place: products.add_unrolled(place, first, count))

    each_part(blocks, together, emit)


def _emit_panels(
    task: Task,
    each_tile: EachTile,
    activations: Activations,
    weights: DirectWeights,
    blocks: int,
    depth: int,
) -> None:
    """All of K, `depth` blocks at a time, whose weights are decoded once for the task."""
    may_be_plain = activations.flags is not None
    panel = Panel(weights, task, depth, may_be_plain)
    unusual = activations.unusual(task) if may_be_plain else None
    with T.serial(-(-blocks // depth)) as number:
        IRBuilder.name("panel", number)
        first = let(number * depth)
        count = let(tirx.min(depth, blocks - first)) if blocks % depth else depth
        panel.decode(first, count)

        def add(is_plain: bool) -> None:
            products = Products(activations, panel, is_plain)

            def add_tile(place: Place) -> None:
                panel.ask_for_next(place, depth)
                products.add(place, first, count)

            each_tile(add_tile)

        if unusual is None:
            add(is_plain=False)
            return
        with T.If((unusual | panel.unusual()) == 0):
            with T.Then():
                add(is_plain=True)
            with T.Else():
                add(is_plain=False)
