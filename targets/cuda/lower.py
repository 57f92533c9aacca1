"""linear(quantize(x).., packed..[, b])  ->  call_tir(gemm, quantized x.., packed..[, b])
quantize(x), x                        ->  call_tir(quantize, x)
fused_quantize(x.., g..)              ->  call_tir(quantize, x.., g..), its float results too
hadamard(x) of a float activation     ->  call_tir(quantize, x), which rotates its rows

Activations are made into the operands of the GEMM that reads them (codes or bfloat16 values in its
layout, scales) once for all linears that want the same; activations in float are split into the
numbers that tensor cores take. Rows of all leading dimensions run as one (M, K) matrix."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rewrite import Scope
from lbcompiler.ir.rotation import rotation_of
from lbcompiler.targets.configs import Tuned
from lbcompiler.targets.cuda.quantize import PLAIN
from lbcompiler.targets.lowering import KernelFor, Lowering, results_of


@dataclass(frozen=True)
class LowerLinears:
    kernel_for: KernelFor
    tuned: Tuned = Tuned()  # noqa: RUF009  # it is frozen
    name: ClassVar[str] = "lower_linears"

    def __call__(self, model: Model) -> Model:
        return _Lowering.apply(model, self.kernel_for, self.tuned)


class _Lowering(Lowering):
    def activation_operands(
        self, kernel: Any, x: Any, k: int, rule: str | None, scope: Scope
    ) -> list[Any]:
        key = (kernel.quantizer, k, rule, x)
        if key not in self.quantized:
            turned = scope.call_to(x, ops.HADAMARD)
            if turned is None:
                source, prologue = x, PLAIN
            else:
                source, prologue = turned.args[0], Prologue(rotation=rotation_of(turned.attrs))
            _, operands = self.run_prologue(kernel, [source], k, rule or "none", prologue, scope)
            self.quantized[key] = operands
        return self.quantized[key]

    def bias_key(self, has_bias: bool) -> tuple[Any, ...]:
        return ("bias",) if has_bias else ()

    def scratch(self, kernel: Any, n: int, config: Any) -> list[Any]:
        return [relax.TensorType(list(s), kind) for s, kind in kernel.scratch(n, config)]

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
        built = self.function(key, partial(_quantize, kernel, k, rule, prologue), scope)
        if built is None:
            return [], rows
        m = rows[0].ty.shape.values[0]
        shapes = [((m, k), "float32")] * prologue.kept + kernel.quantized_shapes(m, k)
        types = [relax.TensorType(list(shape), dtype) for shape, dtype in shapes]
        results = results_of(built, [*rows, *args[prologue.rows :]], types, scope)
        return results[: prologue.kept], results[prologue.kept :]


def _quantize(kernel: Any, k: int, rule: str, prologue: Prologue) -> Any:
    return kernel.quantize(k, rule) if prologue == PLAIN else kernel.quantize(k, rule, prologue)
