"""linear(quantize(x).., packed..[, b])  ->  call_tir(gemm, quantized x.., packed..[, b])
quantize(x), x                        ->  call_tir(quantize, x)
fused_quantize(x.., g..)              ->  call_tir(quantize, x.., g..), its float results too
hadamard(x) of a float activation     ->  call_tir(quantize, x), which rotates its rows

Activations are made into the operands of the GEMM that reads them (codes or bfloat16 values in its
layout, scales) once for all linears that want the same; activations in float are split into the
numbers that tensor cores take. Rows of all leading dimensions run as one (M, K) matrix."""

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
from lbcompiler.targets.cuda.quantize import PLAIN
from lbcompiler.targets.lowering import (
    KernelFor,
    Lowering,
    first_readers,
    product_of,
    quantize_of,
    results_of,
)

OPAQUE = 8  # kOpaque of TVM's op_attr_types.h: not to be fused with anything


@dataclass(frozen=True)
class LowerLinears:
    kernel_for: KernelFor
    tuned: Tuned = Tuned()  # noqa: RUF009  # it is frozen
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
        rule = "none" if source is None else str(source.attrs["scale_rule"])
        *lead, k = x.ty.shape.values
        n, k, epilogue = int(call.attrs["n"]), int(k), str(call.attrs["epilogue"])
        if source is not None and source.op == ops.FUSED_QUANTIZE:
            operands = self.operands_of(kernel, source, scope)
        else:
            operands = self._quantized(kernel, x, k, rule, scope)
        chosen = self.tuned.choose(kernel, n, k)
        config = chosen.config
        layer = str(call.attrs["layer"])
        self.layers[layer] = replace(
            self.layers[layer], config=fields_of(config), config_source=chosen.source
        )
        key = ("gemm", kernel.name, n, k, *(["bias"] if bias is not None else []), epilogue)
        options = {"bias": bias is not None, "epilogue": epilogue, "config": config}
        gemm = self._function(key, lambda: kernel.gemm(n, k, **options), scope)
        weights = [*packed, *([] if bias is None else [bias])]
        scratch = [relax.TensorType(list(s), kind) for s, kind in kernel.scratch(n, config)]
        return product_of(gemm, operands, weights, lead, n, scope, scratch)

    def _quantized(self, kernel: Any, x: Any, k: int, rule: str, scope: Scope) -> list[Any]:
        key = (kernel.quantizer, k, rule, x)
        if key not in self.quantized:
            turned = scope.call_to(x, ops.HADAMARD)
            if turned is None:
                source, prologue = x, PLAIN
            else:
                source, prologue = turned.args[0], Prologue(rotation=rotation_of(turned.attrs))
            _, operands = self.run_prologue(kernel, [source], k, rule, prologue, scope)
            self.quantized[key] = operands
        return self.quantized[key]

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
        key = ("quantize", kernel.quantizer, k, rule, *filter(None, [prologue.name]), prologue)
        built = self._function(key, partial(_quantize, kernel, k, rule, prologue), scope)
        if built is None:
            return [], rows
        m = rows[0].ty.shape.values[0]
        shapes = [((m, k), "float32")] * prologue.kept + kernel.quantized_shapes(m, k)
        types = [relax.TensorType(list(shape), dtype) for shape, dtype in shapes]
        results = results_of(built, [*rows, *args[prologue.rows :]], types, scope)
        return results[: prologue.kept], results[prologue.kept :]

    def _function(self, key: tuple[Any, ...], build: Callable[[], Any], scope: Scope) -> Any:
        if key not in self.functions:
            function = build()
            if function is not None:
                function = function.with_attr("op_pattern", OPAQUE)
                name = "_".join(str(part) for part in key if not isinstance(part, Prologue))
                function = scope.builder.add_func(function, name)
            self.functions[key] = function
        return self.functions[key]


def _quantize(kernel: Any, k: int, rule: str, prologue: Prologue) -> Any:
    return kernel.quantize(k, rule) if prologue == PLAIN else kernel.quantize(k, rule, prologue)
