"""Each stage as its own loops: in tiles where neighbours share their reduction, else element by
element.
"""

from typing import Any

from tvm import tirx
from tvm.tirx import ForKind

from lbcompiler.targets.cpu.schedule.elementwise import (
    PARALLEL_FROM,
    emit_elementwise,
    is_large,
)
from lbcompiler.targets.cpu.schedule.expressions import substitute
from lbcompiler.targets.cpu.schedule.inline import fuse_finish, inline_stages
from lbcompiler.targets.cpu.schedule.kernel import (
    Kernel,
    Nest,
    over,
    sequence,
    serial_if_small,
)
from lbcompiler.targets.cpu.schedule.rows import fold_row
from lbcompiler.targets.cpu.schedule.stages import Program
from lbcompiler.targets.cpu.schedule.tile import emit_tiles, is_tileable


def _emit_folds(nest: Nest, lanes: int) -> Any:
    """Every output by a reduction of its own, in parallel."""

    def body() -> Any:
        statements, result = fold_row(nest, lanes)
        if nest.finish is not None:
            result = substitute(nest.finish, {nest.result: result})
        return sequence([*statements, tirx.BufferStore(nest.out, result, [nest.offset])])

    extents = [axis.extent for axis in (*nest.axes, *nest.reduced)]
    kind = ForKind.PARALLEL if is_large(extents) and nest.axes else ForKind.SERIAL
    return over(nest.axes, body, kind)


def schedule_stages(program: Program) -> Any:
    """The PrimFunc; there is none this cannot do."""
    program = fuse_finish(inline_stages(program))
    kernel = Kernel(program)
    for stage in program.stages:
        nest = kernel.nest(stage)
        if not nest.reduced:
            statement = emit_elementwise(nest, program.lanes)
            extents = [axis.extent for axis in nest.axes]
            kernel.nests.append(serial_if_small(statement, extents, PARALLEL_FROM))
        elif is_tileable(nest):
            kernel.nests.append(emit_tiles(nest, program.lanes))
        else:
            kernel.nests.append(_emit_folds(nest, program.lanes))
    return kernel.finish()
