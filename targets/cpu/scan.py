"""Running sums and products along one axis: TVM's own know no symbolic shape on a CPU."""

from typing import Any

from tvm import te, tirx
from tvm.tirx import ForKind

from lbcompiler.targets.cpu.schedule.expressions import Expr
from lbcompiler.targets.cpu.schedule.kernel import integer, loop, product


def scan(x: Any, axis: int, dtype: str, is_sum: bool, exclusive: bool) -> Any:
    """x of any shape -> the same shape: sums (or products) over all elements up to each along
    `axis`.
    """
    before, count, after = product(x.shape[:axis]), x.shape[axis], product(x.shape[axis + 1 :])
    size = before * count * after

    def body(inputs: Any, outputs: Any) -> Any:
        (source,), (target,) = inputs, outputs
        flat = tirx.decl_buffer((size,), source.dtype, "source", data=tirx.buffer_data(source))
        out = tirx.decl_buffer((size,), dtype, "target", data=tirx.buffer_data(target))

        def line(outer: Expr) -> Any:
            def element(inner: Expr) -> Any:
                total = tirx.decl_buffer((1,), dtype, "total")
                start = tirx.const(0 if is_sum else 1, dtype)

                def step(k: Expr) -> Any:
                    at = (outer * count + k) * after + inner
                    value = tirx.Cast(dtype, flat[at])
                    new = total[0] + value if is_sum else total[0] * value
                    fold = tirx.BufferStore(total, new, [integer(0)])
                    write = tirx.BufferStore(out, total[0], [at])
                    return tirx.SeqStmt([write, fold] if exclusive else [fold, write])

                clear = tirx.BufferStore(total, start, [integer(0)])
                return tirx.SeqStmt([tirx.AllocBuffer(total), clear, loop(count, step, name="k")])

            return loop(after, element, name="inner")

        nest = loop(before, line, ForKind.PARALLEL, "outer")
        views = [
            tirx.DeclBuffer(flat, data=tirx.buffer_data(source)),
            tirx.DeclBuffer(out, data=tirx.buffer_data(target)),
        ]
        return tirx.SeqStmt([*views, nest])

    return te.extern([x.shape], [x], body, name="scan", dtype=dtype)
