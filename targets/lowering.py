"""What lowering linears to calls of kernels takes on every target."""

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer
from lbcompiler.ir.rewrite import Scope

ANALYZER = tvm.sym.Analyzer()


class Lowering:
    """layers: their records, to be completed; functions: what is asked of a kernel -> its
    GlobalVar; quantized: what linears share of an activation -> its parts.
    """

    def __init__(self, layers: dict[str, Layer]) -> None:
        self.layers = layers
        self.functions: dict[tuple[Any, ...], Any] = {}
        self.quantized: dict[tuple[Any, ...], list[Any]] = {}

    def rows(self, x: Any, scope: Scope) -> Any:
        """x (.., k) as one matrix (M, k)."""
        *lead, k = x.ty.shape.values
        if len(lead) == 1:
            return x
        key = ("rows", x)
        if key not in self.quantized:
            rows = tvm.tirx.const(1, "int64")
            for extent in lead:
                rows = rows * extent
            self.quantized[key] = [scope.emit(relax.op.reshape(x, [ANALYZER.simplify(rows), k]))]
        return self.quantized[key][0]


def results_of(built: Any, inputs: Sequence[Any], types: Sequence[Any], scope: Scope) -> list[Any]:
    """The results of a PrimFunc's call, one for each type."""
    out = scope.emit(relax.call_tir(built, list(inputs), types if len(types) > 1 else types[0]))
    if len(types) == 1:
        return [out]
    return [scope.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]


def product_of(
    gemm: Any,
    operands: Sequence[Any],
    weights: Sequence[Any],
    lead: Sequence[Any],
    n: int,
    scope: Scope,
) -> Any:
    """y (.., n) of a GEMM's call; `weights` are the packed ones and what follows them."""
    m = operands[0].ty.shape.values[0]
    y = scope.emit(relax.call_tir(gemm, [*operands, *weights], relax.TensorType([m, n], "float32")))
    return relax.op.reshape(y, [*lead, n]) if len(lead) != 1 else y


def quantize_of(activation: list[Any], scope: Scope) -> Any:
    """The `lbc.quantize` whose parts these are, None for an activation in float."""
    part = scope.value(activation[0])
    if not isinstance(part, relax.TupleGetItem):
        return None
    return scope.call_to(part.tuple_value, ops.QUANTIZE)
