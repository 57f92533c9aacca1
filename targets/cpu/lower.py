"""linear(quantize(x).., packed..[, b])  ->  call_tir(gemm, quantized x.., packed..[, b])
quantize(x)                           ->  call_tir(quantize, x)

The quantize of an activation is lowered where a linear reads it, into the operands that this
linear's kernel wants (integers, scales, start values of the accumulator); linears of one kind share
it. The config of a GEMM goes into the layer's record. Rows of all leading dimensions run as one
(M, K) matrix."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.targets.cpu.configs import Tuned, fields_of

KernelFor = Callable[..., Any]


@dataclass(frozen=True)
class LowerLinears:
    kernel_for: KernelFor
    tuned: Tuned
    name: ClassVar[str] = "lower_linears"

    def __call__(self, model: Model) -> Model:
        lowering = _Lowering(self.kernel_for, self.tuned, dict(model.layers))
        module = rewrite(model.module, lowering.visit)
        return replace(model, module=module, layers=lowering.layers)


class _Lowering:
    def __init__(self, kernel_for: KernelFor, tuned: Tuned, layers: dict[str, Layer]) -> None:
        self.kernel_for = kernel_for
        self.tuned = tuned
        self.layers = layers
        self.functions: dict[
            tuple[Any, ...], Any
        ] = {}  # what is asked of a kernel -> its GlobalVar
        self.quantized: dict[tuple[Any, ...], list[Any]] = {}

    def visit(self, call: Any, scope: Scope) -> Any:
        if call.op != ops.LINEAR:
            return None
        activation, packed, bias = ops.linear_operands(call)
        kernel = self.kernel_for(*ops.linear_formats(call))
        source = _quantize_of(activation, scope)
        x = activation[0] if source is None else source.args[0]
        *lead, k = x.ty.shape.values
        n, epilogue = int(call.attrs["n"]), str(call.attrs["epilogue"])
        rows = self._rows(x, scope)
        operands = [rows]
        if source is not None:
            operands = self._quantize(
                kernel, rows, x, int(k), str(source.attrs["scale_rule"]), scope
            )
        chosen = self.tuned.choose(kernel, n, int(k))
        layer = str(call.attrs["layer"])
        self.layers[layer] = replace(
            self.layers[layer], config=fields_of(chosen.config), config_source=chosen.source
        )
        options = {"bias": bias is not None, "epilogue": epilogue, "config": chosen.config}
        key = ("gemm", kernel.name, n, int(k), bias is not None, epilogue)
        gemm = self._function(key, lambda: kernel.gemm(n, int(k), **options), scope)
        m = rows.ty.shape.values[0]
        y = scope.emit(
            relax.call_tir(
                gemm,
                [*operands, *packed, *([] if bias is None else [bias])],
                relax.TensorType([m, n], "float32"),
            )
        )
        return relax.op.reshape(y, [*lead, n]) if len(lead) != 1 else y

    def _rows(self, x: Any, scope: Scope) -> Any:
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

    def _quantize(
        self, kernel: Any, rows: Any, x: Any, k: int, rule: str, scope: Scope
    ) -> list[Any]:
        key = ("quantize", kernel.quantizer, k, rule)
        if (*key, x) not in self.quantized:
            built = self._function(key, lambda: kernel.quantize(k, rule), scope)
            m = rows.ty.shape.values[0]
            specs = kernel.quantized_specs(k)
            types = [relax.TensorType([m, *shape], dtype) for shape, dtype in specs]
            out = scope.emit(relax.call_tir(built, [rows], types if len(types) > 1 else types[0]))
            items = [relax.TupleGetItem(out, i) for i in range(len(types))]
            parts = [scope.emit(item) for item in items] if len(types) > 1 else [out]
            self.quantized[(*key, x)] = parts
        return self.quantized[(*key, x)]

    def _function(self, key: tuple[Any, ...], build: Callable[[], Any], scope: Scope) -> Any:
        if key not in self.functions:
            name = "_".join(str(part) for part in key)
            self.functions[key] = scope.builder.add_func(build(), name)
        return self.functions[key]


ANALYZER = tvm.sym.Analyzer()


def _quantize_of(activation: list[Any], scope: Scope) -> Any:
    """The `lbc.quantize` whose parts these are, None for an activation in float."""
    part = scope.value(activation[0])
    if not isinstance(part, relax.TupleGetItem):
        return None
    return scope.call_to(part.tuple_value, ops.QUANTIZE)
