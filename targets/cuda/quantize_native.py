"""Dynamic quantization of activations to the codes and scale bytes that `mma.sync .. block_scale`
takes: the rows of layout_native.py, bit for bit those of `BlockFormat.quantize`.

It is the kernel of quantize.py, which puts codes where that one puts products.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.formats.scales import NAN_BYTE
from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Device,
    Expr,
    Registers,
    bound,
    int64,
    kernel,
    let,
)
from lbcompiler.targets.cuda.intrinsics import launch as launched
from lbcompiler.targets.cuda.layout_native import ROW, Pair
from lbcompiler.targets.cuda.layout_tcgen05 import ATOM, ATOM_BLOCKS, COLUMNS, GROUP, LANES, atoms
from lbcompiler.targets.cuda.prologue_rows import EACH, PIECE, PrologueRow
from lbcompiler.targets.cuda.quantize import MOST_WARPS, PLAIN, Row, check_rotation
from lbcompiler.targets.cuda.rounding import INFINITY, check_rule, code_of, code_of_scale, to_value


@dataclass(frozen=True)
class NativeQuantizer:
    """x f32 (M, k) -> codes uint8 (M, 128 S), scales uint8[, row scales f32 (M, 1)].

    A prologue has its operands and float results where `Quantizer` has them. Scales are (M, ..), or
    `is_tiled` (ceil(M / 128), .., 512) as layout_tcgen05.py has them.
    """

    pair: Pair
    prologue: Prologue = PLAIN
    is_tiled: bool = False

    def build(self, k: int, rule: str) -> Any:
        """The PrimFunc. ConfigError for a rule that searches and for a rotation it cannot do."""
        fmt, depth = self.pair.act, self.pair.depths(k)
        check_rule(fmt, rule)
        check_rotation(self.prologue.rotation, k)
        with kernel() as builder:
            m, size = tirx.Var("m", "int64"), depth * self.pair.depth
            source = PrologueRow(self.prologue, m, k, size)
            codes = T.arg("codes", T.buffer((m, depth * ROW), "uint8"))
            shape: tuple[Any, ...] = (m, depth * self.pair.row_scales)
            if self.is_tiled:
                shape = ((m + (GROUP - 1)) // GROUP, depth * atoms(self.pair), ATOM)
            scales = T.arg("scales", T.buffer(shape, "uint8"))
            row_scales = None
            if fmt.has_tensor_scale:
                row_scales = T.arg("row_scales", T.buffer((m, 1), "float32"))
            warps = min(MOST_WARPS, size // PIECE)
            with launched([m], warps * WARP) as (place, thread):
                kind = _TiledRow if self.is_tiled else _NativeRow
                row = kind(fmt, rule, source, row_scales, place[0], thread, warps)
                row.pair, row.codes, row.scales = self.pair, codes, scales
                row.emit()
        return builder.get()


class _NativeRow(Row):
    pair: Pair
    codes: Any
    scales: Any

    def _finish(self, start: Expr, v: Registers, g: Expr | None) -> None:
        amax, scale, units = self._units(v, g)
        element, fmt = self.pair.act.element, self.pair.act
        zero = tirx.const(0, "int32")
        is_number = tirx.And(amax < INFINITY, tirx.NE(amax, 0))
        codes = [
            bound(tirx.Select(is_number, code_of(element)(to_value(element)(unit)), zero), "int32")
            for unit in units
        ]
        nan = tirx.const(NAN_BYTE[fmt.scale], "int32")
        byte = tirx.Select(amax < INFINITY, code_of_scale(fmt.scale)(scale), nan)
        first = tirx.EQ(self.lane % (fmt.block // EACH), 0)
        with T.If(first), T.Then():
            kept = bound(tirx.Select(start < self.k, byte, zero), "int32")
            place = self._place_of_scale(let(start // fmt.block))
            T.buffer_store(self.scales, tirx.Cast("uint8", kept), place)
        size = EACH // self.pair.codes_of_byte
        place = self.codes.ptr_to([self.row, int64(start // self.pair.codes_of_byte)])
        _store(size, element.bits if size < EACH else 8).run(place, *codes)

    def _place_of_scale(self, block: Expr) -> list[Expr]:
        return [self.row, int64(block)]


class _TiledRow(_NativeRow):
    """Scales lie as tensor memory wants them (layout_tcgen05.py)."""

    def _place_of_scale(self, block: Expr) -> list[Expr]:
        row = let(int64(self.row) % GROUP)
        lane, column = row % LANES, row // LANES
        byte = lane * (COLUMNS * ATOM_BLOCKS) + column * ATOM_BLOCKS + int64(block) % ATOM_BLOCKS
        return [int64(self.row) // GROUP, int64(block) // ATOM_BLOCKS, byte]


def _store(size: int, bits: int) -> Device:
    """Four codes of so many bits each, the first one lowest."""
    kind = {2: "uint16_t", 4: "uint32_t"}[size]
    text = (
        f"__device__ __forceinline__ void lb_store_codes{size}(void* p, int a, int b, int c, "
        "int d) "
        f"{{ *reinterpret_cast<{kind}*>(p) = unsigned(a) | unsigned(b) << {bits} | "
        f"unsigned(c) << {2 * bits} | unsigned(d) << {3 * bits}; }}"
    )
    return Device(f"lb_store_codes{size}", text)
