"""linear(quantize(x).., packed..[, b])  ->  call_tir(gemm, quantized x.., packed..[, b])
quantize(x)                           ->  call_tir(quantize, x)
quantize(im2col(x))                   ->  call_tir(quantize, x), or gathered from quantize(x)

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
from lbcompiler.targets.cpu.windows import (
    Windows,
    gather_windows,
    gathered_operands,
    window_shape,
)

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
            windows = scope.call_to(x, ops.IM2COL)
            specs, m = kernel.quantized_specs(k), rows.ty.shape.values[0]
            if windows is None:
                built = self._function(key, lambda: kernel.quantize(k, rule), scope)
                parts = self._call(built, [rows], m, specs, scope)
            else:
                parts = self._quantize_windows(kernel, windows, m, k, rule, scope)
            self.quantized[(*key, x)] = parts
        return self.quantized[(*key, x)]

    def _quantize_windows(
        self, kernel: Any, windows: Any, m: Any, k: int, rule: str, scope: Scope
    ) -> list[Any]:
        """quantize(im2col(x)) without the windows in float."""
        x, shape, specs = windows.args[0], window_shape(windows), kernel.quantized_specs(k)
        plan = gathered_operands(kernel, shape.channels, k)
        if plan is None:
            key = ("quantize", kernel.quantizer, shape.name, rule)
            built = self._function(key, lambda: kernel.quantize(k, rule, Windows(shape)), scope)
            return self._call(built, [x], m, specs, scope)
        pixels = self._quantize(kernel, self._rows(x, scope), x, shape.channels, rule, scope)
        images = [
            scope.emit(relax.op.reshape(part, [*x.ty.shape.values[:3], operand.stride]))
            for part, operand in zip(pixels, plan, strict=True)
        ]
        name = ("gather", kernel.quantizer, shape.name)
        built = self._function(name, lambda: gather_windows(shape, plan), scope)
        return self._call(built, images, m, specs, scope)

    def _call(
        self, built: Any, inputs: list[Any], m: Any, specs: list[Any], scope: Scope
    ) -> list[Any]:
        """The results of a function for m rows, one for each spec."""
        types = [relax.TensorType([m, *shape], dtype) for shape, dtype in specs]
        out = scope.emit(relax.call_tir(built, inputs, types if len(types) > 1 else types[0]))
        if len(types) == 1:
            return [out]
        return [scope.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]

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
