"""What legalizations are made of: how an op of Relax becomes calls of PrimFuncs."""

from collections.abc import Callable
from typing import Any

import tvm

Builder = Any  # relax.BlockBuilder
Legalization = Callable[[Builder, Any], Any]


def default(call: Any) -> Legalization:
    """TVM's own legalization of an op."""
    legalize: Legalization = tvm.ir.Op.get(call.op.name).get_attr("FLegalize")
    return legalize


def integers(values: Any) -> list[int]:
    return [int(value) for value in values]
