"""linear(quantize(x).., packed..[, b])  ->  call_tir(gemm, quantized x.., packed..[, b])
quantize(x)                           ->  call_tir(quantize, x)
quantize(hadamard(x))                 ->  call_tir(quantize, x), which rotates its rows
quantize(im2col(x))                   ->  call_tir(quantize, x), or gathered from quantize(x)
fused_quantize(x.., g..)              ->  call_tir(quantize, x.., g..), its float results too

The quantize of an activation is lowered where a linear reads it, into the operands that this
linear's kernel wants (integers, scales, start values of the accumulator); linears of one kind share
it. One with float results is lowered where it stands, for the first linear that reads it. The
config of a GEMM goes into the layer's record. Rows of all leading dimensions run as one (M, K)
matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.ir.rotation import rotation_of
from lbcompiler.targets.configs import Tuned, fields_of
from lbcompiler.targets.cpu.sources import PrologueRows
from lbcompiler.targets.cpu.windows import (
    Windows,
    gather_windows,
    gathered_operands,
    window_shape,
)
from lbcompiler.targets.lowering import (
    KernelFor,
    Lowering,
    first_readers,
    product_of,
    quantize_of,
    results_of,
)


@dataclass(frozen=True)
class LowerLinears:
    kernel_for: KernelFor
    tuned: Tuned
    name: ClassVar[str] = "lower_linears"

    def __call__(self, model: Model) -> Model:
        readers = first_readers(model.module)
        lowering = _Lowering(self.kernel_for, self.tuned, dict(model.layers), readers)
        module = rewrite(model.module, lowering.visit)
        return replace(model, module=module, layers=lowering.layers)


class _Lowering(Lowering):
    def __init__(
        self,
        kernel_for: KernelFor,
        tuned: Tuned,
        layers: dict[str, Layer],
        readers: dict[Any, Any],
    ) -> None:
        super().__init__(kernel_for, layers, readers)
        self.tuned = tuned

    def visit(self, call: Any, scope: Scope) -> Any:
        if call.op == ops.FUSED_QUANTIZE:
            return self.fused_quantize(call, scope)
        if call.op != ops.LINEAR:
            return None
        activation, packed, bias = ops.linear_operands(call)
        kernel = self.kernel_for(*ops.linear_formats(call))
        source = self.fused.get(activation[0])
        if source is None:
            source = quantize_of(activation, scope)
        x = activation[0] if source is None else source.args[0]
        *lead, k = x.ty.shape.values
        n, epilogue = int(call.attrs["n"]), str(call.attrs["epilogue"])
        rows = self.rows(x, scope)
        operands = [rows]
        if source is not None and source.op == ops.FUSED_QUANTIZE:
            operands = self.operands_of(kernel, source, scope)
        elif source is not None:
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
        weights = [*packed, *([] if bias is None else [bias])]
        return product_of(gemm, operands, weights, lead, n, scope)

    def _quantize(
        self, kernel: Any, rows: Any, x: Any, k: int, rule: str, scope: Scope
    ) -> list[Any]:
        key = ("quantize", kernel.quantizer, k, rule)
        if (*key, x) not in self.quantized:
            windows, turned = (scope.call_to(x, op) for op in (ops.IM2COL, ops.HADAMARD))
            specs, m = kernel.quantized_specs(k), rows.ty.shape.values[0]
            if windows is not None:
                parts = self._quantize_windows(kernel, windows, m, k, rule, scope)
            elif turned is not None:
                prologue = Prologue(rotation=rotation_of(turned.attrs))
                _, parts = self.run_prologue(kernel, [turned.args[0]], k, rule, prologue, scope)
            else:
                built = self._function(key, lambda: kernel.quantize(k, rule), scope)
                parts = self._call(built, [rows], m, specs, scope)
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
        pixels = self._quantize(kernel, self.rows(x, scope), x, shape.channels, rule, scope)
        images = [
            scope.emit(relax.op.reshape(part, [*x.ty.shape.values[:3], operand.stride]))
            for part, operand in zip(pixels, plan, strict=True)
        ]
        name = ("gather", kernel.quantizer, shape.name)
        built = self._function(name, lambda: gather_windows(shape, plan), scope)
        return self._call(built, images, m, specs, scope)

    def run_prologue(
        self,
        kernel: Any,
        args: Sequence[Any],
        k: int,
        rule: str,
        prologue: Prologue,
        scope: Scope,
    ) -> tuple[list[Any], list[Any]]:
        rows = [self.rows(x, scope) for x in args[: prologue.rows]]
        key = ("quantize", kernel.quantizer, k, rule, prologue.name, prologue)
        build = partial(kernel.quantize, k, rule, PrologueRows(prologue))
        specs = [((k,), "float32")] * prologue.kept + kernel.quantized_specs(k)
        results = self._call(
            self._function(key, build, scope),
            [*rows, *args[prologue.rows :]],
            rows[0].ty.shape.values[0],
            specs,
            scope,
        )
        return results[: prologue.kept], results[prologue.kept :]

    def _call(
        self, built: Any, inputs: list[Any], m: Any, specs: list[Any], scope: Scope
    ) -> list[Any]:
        """The results of a function for m rows, one for each spec."""
        types = [relax.TensorType([m, *shape], dtype) for shape, dtype in specs]
        return results_of(built, inputs, types, scope)

    def _function(self, key: tuple[Any, ...], build: Callable[[], Any], scope: Scope) -> Any:
        if key not in self.functions:
            name = "_".join(str(part) for part in key if not isinstance(part, Prologue))
            self.functions[key] = scope.builder.add_func(build(), name)
        return self.functions[key]
