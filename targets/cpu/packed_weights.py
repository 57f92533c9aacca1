"""Packed weights inside a kernel: the arguments that hold them, and vectors read from them."""

from typing import Any

from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat
from lbcompiler.targets.cpu.intrinsics import Expr, at, let
from lbcompiler.targets.cpu.isa import Isa
from lbcompiler.targets.cpu.layout import COLUMNS, padded, plane_shapes, tiles


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
