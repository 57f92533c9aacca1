"""linear(quantize(x).., packed..[, b])  ->  call_tir(gemm, quantized x.., packed..[, b])
quantize(x), x                        ->  call_tir(quantize, x)
quantize(hadamard(x)), hadamard(x)    ->  call_tir(quantize, x), which rotates its rows

Activations are made into the operands of the GEMM that reads them (codes or bfloat16 values in its
layout, scales) once for all linears that want the same; activations in float are split into the
numbers that tensor cores take. Rows of all leading dimensions run as one (M, K) matrix."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.ir.rotation import rotation_of
from lbcompiler.targets.lowering import Lowering, product_of, quantize_of, results_of

KernelFor = Callable[..., Any]
OPAQUE = 8  # kOpaque of TVM's op_attr_types.h: not to be fused with anything


@dataclass(frozen=True)
class LowerLinears:
    kernel_for: KernelFor
    name: ClassVar[str] = "lower_linears"

    def __call__(self, model: Model) -> Model:
        lowering = _Lowering(self.kernel_for, dict(model.layers))
        module = rewrite(model.module, lowering.visit)
        return replace(model, module=module, layers=lowering.layers)


class _Lowering(Lowering):
    def __init__(self, kernel_for: KernelFor, layers: dict[str, Layer]) -> None:
        super().__init__(layers)
        self.kernel_for = kernel_for

    def visit(self, call: Any, scope: Scope) -> Any:
        if call.op != ops.LINEAR:
            return None
        activation, packed, bias = ops.linear_operands(call)
        kernel = self.kernel_for(*ops.linear_formats(call))
        source = quantize_of(activation, scope)
        x = activation[0] if source is None else source.args[0]
        rule = "none" if source is None else str(source.attrs["scale_rule"])
        *lead, k = x.ty.shape.values
        n, k, epilogue = int(call.attrs["n"]), int(k), str(call.attrs["epilogue"])
        operands = self._operands(kernel, x, k, rule, scope)
        config = kernel.default_config(n, k)
        layer = str(call.attrs["layer"])
        self.layers[layer] = replace(
            self.layers[layer], config=asdict(config), config_source="default"
        )
        key = ("gemm", kernel.name, n, k, *(["bias"] if bias is not None else []), epilogue)
        options = {"bias": bias is not None, "epilogue": epilogue, "config": config}
        gemm = self._function(key, lambda: kernel.gemm(n, k, **options), scope)
        weights = [*packed, *([] if bias is None else [bias])]
        return product_of(gemm, operands, weights, lead, n, scope)

    def _operands(self, kernel: Any, x: Any, k: int, rule: str, scope: Scope) -> list[Any]:
        key = (kernel.quantizer, k, rule, x)
        if key not in self.quantized:
            turned = scope.call_to(x, ops.HADAMARD)
            rotation = None if turned is None else rotation_of(turned.attrs)
            rows = self.rows(x if turned is None else turned.args[0], scope)
            self.quantized[key] = self._quantize(kernel, rows, k, rule, rotation, scope)
        return self.quantized[key]

    def _quantize(
        self, kernel: Any, rows: Any, k: int, rule: str, rotation: Any, scope: Scope
    ) -> list[Any]:
        name = [] if rotation is None else [rotation.name]
        key = ("quantize", kernel.quantizer, k, rule, *name)
        built = self._function(key, lambda: kernel.quantize(k, rule, rotation), scope)
        if built is None:
            return [rows]
        m = rows.ty.shape.values[0]
        types = [
            relax.TensorType(list(shape), dtype) for shape, dtype in kernel.quantized_shapes(m, k)
        ]
        return results_of(built, [rows], types, scope)

    def _function(self, key: tuple[Any, ...], build: Callable[[], Any], scope: Scope) -> Any:
        if key not in self.functions:
            function = build()
            if function is not None:
                function = function.with_attr("op_pattern", OPAQUE)
                function = scope.builder.add_func(function, "_".join(map(str, key)))
            self.functions[key] = function
        return self.functions[key]
