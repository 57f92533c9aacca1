"""Whole-number inputs that index a table: how many rows it has, for drawing random ones."""

from typing import Any

import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import bindings, operands

TAKE = tvm.ir.Op.get("relax.take")


def indexed_rows(model: Model) -> dict[str, int]:
    """Input -> rows of the smallest constant table that is indexed by what comes from it alone."""
    main = model.module["main"]
    ports = zip(main.params, model.inputs, strict=False)
    origin: dict[Any, frozenset[str]] = {var: frozenset([port.name]) for var, port in ports}
    weights: set[Any] = set()
    rows: dict[str, int] = {}
    for binding in bindings(main):
        value = binding.value
        read = [v for v in operands(value) if isinstance(v, relax.Var)]
        if ops.is_call_to(value, ops.WEIGHT):
            weights.add(binding.var)
        elif ops.is_call_to(value, TAKE) and value.args[0] in weights:
            table, index = value.args[0].ty.shape.values, value.args[1]
            for name in origin.get(index, ()):
                size = int(table[int(value.attrs.axis or 0)])
                rows[name] = min(size, rows.get(name, size))
            continue
        origin[binding.var] = frozenset().union(*(origin.get(v, frozenset()) for v in read))
    return rows
