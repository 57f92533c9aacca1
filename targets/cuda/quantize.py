"""Dynamic quantization of activations on their way into a GEMM: what `BlockFormat.quantize` defines
with a tensor scale a row, bit for bit; what it writes is code * scale, a bfloat16.

    block: one row; its warps take pieces of 128 neighbours, four to a lane
        [activation, sum or product with another row, norm]   (prologue_rows.py)
        rotation: butterflies within the lane, then by shuffles between lanes
        [the row's largest |x|: of lanes, warps, block]      formats with a tensor scale: x is read
        the largest |x| of a format's block, by shuffles      twice, from the L2 cache
        scale, rounding, product

Without a format x is split into the sum of two bfloat16, which keeps 16 bits of it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.errors import ConfigError
from lbcompiler.formats import BlockFormat
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Device,
    Expr,
    Registers,
    barrier,
    bound,
    int64,
    kernel,
    launch,
    let,
)
from lbcompiler.targets.cuda.layout import DEPTH, depths
from lbcompiler.targets.cuda.prologue_rows import EACH, PIECE, PrologueRow
from lbcompiler.targets.cuda.rounding import (
    DIFFERENCE,
    FOUR,
    HIGH_PART,
    INFINITY,
    LOW_PART,
    MAGNITUDE,
    POWER,
    PRODUCT,
    QUOTIENT,
    SHUFFLE,
    SHUFFLE_INT,
    SUM,
    TO_BFLOAT16,
    block_exponent,
    block_scale,
    check_rule,
    tensor_scale,
    to_value,
)

PLAIN = Prologue()  # x as it is
MOST_WARPS = 8


@dataclass(frozen=True)
class Quantizer:
    """x f32 (M, k) -> bfloat16 (as uint16) (M, parts, Kp)[, row scales f32 (M, 1)].

    A prologue that computes the rows has its operands in place of x, and its float results before
    the others.
    """

    fmt: BlockFormat | None
    prologue: Prologue = PLAIN

    def build(self, k: int, rule: str) -> Any:
        """The PrimFunc. ConfigError for a rule that searches and for a rotation it cannot do."""
        if self.fmt is not None:
            check_rule(self.fmt, rule)
        check_rotation(self.prologue.rotation, k)
        with kernel() as builder:
            m, size = tirx.Var("m", "int64"), depths(k) * DEPTH
            source = PrologueRow(self.prologue, m, k, size)
            parts = 2 if self.fmt is None else 1
            out = T.arg("values", T.buffer((m, parts, depths(k) * DEPTH), "uint16"))
            row_scales = None
            if self.fmt is not None and self.fmt.has_tensor_scale:
                row_scales = T.arg("row_scales", T.buffer((m, 1), "float32"))
            warps = min(MOST_WARPS, -(-size // PIECE))
            with launch([m], warps * WARP) as (place, thread):
                row = _ProductRow(self.fmt, rule, source, row_scales, place[0], thread, warps)
                row.out = out
                row.emit()
        return builder.get()


def check_rotation(rotation: Rotation | None, k: int) -> None:
    """ConfigError for one that a warp cannot do."""
    if rotation is None:
        return
    if rotation.size > PIECE:
        raise ConfigError(
            f"{rotation.name} is larger than the {PIECE} neighbours that a warp of the CUDA target "
            f"rotates while it quantizes; choose a size up to {PIECE}"
        )
    if not rotation.divides(k):
        raise ConfigError(f"{rotation.name} needs a K in multiples of {rotation.size}: {k}")


class Row(ABC):
    """The code of one block of threads, for a row that a prologue computes."""

    def __init__(
        self,
        fmt: BlockFormat | None,
        rule: str,
        source: PrologueRow,
        row_scales: Any,
        row: Expr,
        thread: Expr,
        warps: int,
    ) -> None:
        self.fmt, self.rule, self.source, self.row_scales = fmt, rule, source, row_scales
        self.k, self.size, self.rotation = source.k, source.size, source.prologue.rotation
        self.row, self.warps = int64(row), warps
        self.lane, self.warp = let(thread % WARP), let(thread // WARP)

    def emit(self) -> None:
        is_read_twice = self.row_scales is not None
        self.source.begin(self.row, self.lane, self.warp, self.warps, is_read_twice=is_read_twice)
        g = self._row_scale() if is_read_twice else None
        self.source.sweep(lambda start: self._finish(start, self._load(start, is_last=True), g))

    @abstractmethod
    def _finish(self, start: Expr, v: Registers, g: Expr | None) -> None:
        """Four neighbours from `start` on, quantized and stored."""

    def _load(self, start: Expr, *, is_last: bool) -> Registers:
        """Four neighbours, rotated; zeros beyond the row."""
        v = self.source.load(start, is_last=is_last)
        if self.rotation is not None:
            self._rotate(self.rotation, v)
        return v

    def _rotate(self, rotation: Rotation, v: Registers) -> None:
        if rotation.seed is not None:
            signs = _signs(rotation)(self.lane)
            held = bound(signs, "int32")
            for i in range(EACH):
                is_negative = tirx.EQ(held >> i & 1, 1)
                v[i] = tirx.Select(is_negative, tirx.const(-1.0, "float32") * v[i], v[i])
        distance = 1
        while distance < rotation.size:
            if distance < EACH:
                for i in range(EACH):
                    if not i & distance:
                        first, second = bound(v[i], "float32"), bound(v[i + distance], "float32")
                        v[i], v[i + distance] = SUM(first, second), DIFFERENCE(first, second)
            else:
                apart = distance // EACH
                is_second = tirx.NE(self.lane & apart, 0)
                for i in range(EACH):
                    other = bound(SHUFFLE(v[i], apart), "float32")
                    mine = bound(v[i], "float32")
                    v[i] = tirx.Select(is_second, DIFFERENCE(other, mine), SUM(mine, other))
            distance *= 2
        for i in range(EACH):
            v[i] = PRODUCT(v[i], tirx.const(float(rotation.factor), "float32"))

    def _row_scale(self) -> Expr:
        """g, from the largest finite |x| of the row, and stored."""
        assert self.fmt is not None
        largest = Registers(1, "int32")
        largest.clear()

        def look(start: Expr) -> None:
            v = self._load(start, is_last=False)
            for i in range(EACH):
                bits = bound(MAGNITUDE(v[i]), "int32")
                finite = tirx.Select(bits < INFINITY, bits, tirx.const(0, "int32"))
                largest[0] = tirx.Max(largest[0], finite)

        self.source.sweep(look)
        self._spread_maximum(largest, WARP)
        shared = T.alloc_buffer((self.warps,), "int32", scope="shared")
        with T.If(tirx.EQ(self.lane, 0)), T.Then():
            T.buffer_store(shared, largest[0], [self.warp])
        barrier()
        for warp in range(self.warps):
            largest[0] = tirx.Max(largest[0], shared[warp])
        g = bound(tensor_scale(self.fmt.element, self.rule)(largest[0]), "float32")
        with T.If(tirx.And(tirx.EQ(self.lane, 0), tirx.EQ(self.warp, 0))), T.Then():
            T.buffer_store(self.row_scales, g, [self.row, int64(0)])
        return g

    def _spread_maximum(self, largest: Registers, lanes: int) -> None:
        """The maximum over groups of neighbouring lanes, in each of them."""
        apart = 1
        while apart < lanes:
            other = bound(SHUFFLE_INT(largest[0], apart), "int32")
            largest[0] = tirx.Max(largest[0], other)
            apart *= 2

    def _units(self, v: Registers, g: Expr | None) -> tuple[Expr, Expr, list[Expr]]:
        """Of the block: the bits of its largest |x|, its scale, and the four in units of it."""
        assert self.fmt is not None
        largest = Registers(1, "int32")
        largest[0] = MAGNITUDE(v[0])
        for i in range(1, EACH):
            largest[0] = tirx.Max(largest[0], MAGNITUDE(v[i]))
        self._spread_maximum(largest, self.fmt.block // EACH)
        element, amax = self.fmt.element, largest[0]
        if g is None:
            exponent = bound(block_exponent(element, self.rule)(amax), "int32")
            scale = bound(POWER(exponent), "float32")
            inverse = bound(POWER(tirx.const(0, "int32") - exponent), "float32")
            return amax, scale, [PRODUCT(v[i], inverse) for i in range(EACH)]
        scale = bound(block_scale(element)(amax, g), "float32")
        if self.rule == "four_over_six":
            four = bound(block_scale(element, FOUR)(amax, g), "float32")
            is_less = self._cost(v, four, g) < self._cost(v, scale, g)
            scale = bound(tirx.Select(is_less, four, scale), "float32")
        divisor = bound(PRODUCT(scale, g), "float32")
        return amax, scale, [QUOTIENT(v[i], divisor) for i in range(EACH)]

    def _cost(self, v: Registers, scale: Expr, g: Expr) -> Expr:
        """scale^2 times the block's sum of (x / scale - code)^2, added in halves, in each lane."""
        assert self.fmt is not None
        divisor = bound(PRODUCT(scale, g), "float32")
        squares = Registers(EACH, "float32")
        for i in range(EACH):
            unit = bound(QUOTIENT(v[i], divisor), "float32")
            error = bound(DIFFERENCE(unit, to_value(self.fmt.element)(unit)), "float32")
            squares[i] = PRODUCT(error, error)
        apart = self.fmt.block // EACH // 2
        while apart:
            for i in range(EACH):
                squares[i] = SUM(squares[i], bound(SHUFFLE(squares[i], apart), "float32"))
            apart //= 2
        total = SUM(SUM(squares[0], squares[2]), SUM(squares[1], squares[3]))
        return bound(PRODUCT(PRODUCT(scale, scale), total), "float32")


class _ProductRow(Row):
    out: Any

    def _finish(self, start: Expr, v: Registers, g: Expr | None) -> None:
        parts = self._split(v) if self.fmt is None else [self._products(start, v, g)]
        with T.If(start < self.size), T.Then():
            for number, values in enumerate(parts):
                place = self.out.ptr_to([self.row, int64(number), int64(start)])
                _STORE.run(place, TO_BFLOAT16(*values[:2]), TO_BFLOAT16(*values[2:]))

    def _split(self, v: Registers) -> list[list[Expr]]:
        high = [bound(HIGH_PART(v[i]), "float32") for i in range(EACH)]
        return [high, [bound(LOW_PART(v[i], high[i]), "float32") for i in range(EACH)]]

    def _products(self, start: Expr, v: Registers, g: Expr | None) -> list[Expr]:
        """float32 that bfloat16 holds or rounds."""
        assert self.fmt is not None
        amax, scale, units = self._units(v, g)
        zero, nan = tirx.const(0.0, "float32"), tirx.const(np.nan, "float32")
        values = []
        for i, unit in enumerate(units):
            product = PRODUCT(to_value(self.fmt.element)(unit), scale)
            kept = tirx.Select(tirx.EQ(amax, 0), zero, product)
            value = tirx.Select(amax < INFINITY, kept, nan)
            if self.k % self.fmt.block:  # padding of a NaN block is zeros, too
                value = tirx.Select(start + i < self.k, value, zero)
            values.append(bound(value, "float32"))
        return values


def _signs(rotation: Rotation) -> Device:
    """lane -> bit i set where its neighbour i changes sign."""
    bits = np.resize(rotation.signs, PIECE) < 0
    words = [int(word) for word in np.packbits(bits, bitorder="little").view("<u4")]
    w = [f"0x{word:08X}u" for word in words]
    name = f"lb_signs_{rotation.size}_{rotation.seed}"
    text = (
        f"__device__ __forceinline__ int {name}(int lane) {{ const unsigned w = lane < 16 ? "
        f"(lane < 8 ? {w[0]} : {w[1]}) : (lane < 24 ? {w[2]} : {w[3]}); "
        "return w >> (lane % 8 * 4) & 15; }"
    )
    return Device(name, text, "int32")


_STORE = Device(
    "lb_store_pairs",
    "__device__ __forceinline__ void lb_store_pairs(void* p, unsigned a, unsigned b) "
    "{ *reinterpret_cast<uint2*>(p) = make_uint2(a, b); }",
)
