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
from lbcompiler.targets.cpu.sources import PrologueRows
from lbcompiler.targets.cpu.windows import (
    Windows,
    gather_windows,
    gathered_operands,
    window_shape,
)
from lbcompiler.targets.lowering import KernelFor, Lowering, results_of


@dataclass(frozen=True)
class LowerLinears:
    kernel_for: KernelFor
    tuned: Tuned
    name: ClassVar[str] = "lower_linears"

    def __call__(self, model: Model) -> Model:
        return _Lowering.apply(model, self.kernel_for, self.tuned)


class _Lowering(Lowering):
    def activation_operands(
        self, kernel: Any, x: Any, k: int, rule: str | None, scope: Scope
    ) -> list[Any]:
        rows = self.rows(x, scope)
        return [rows] if rule is None else self._quantize(kernel, rows, x, k, rule, scope)

    def bias_key(self, has_bias: bool) -> tuple[Any, ...]:
        return (has_bias,)

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
                built = self.function(key, lambda: kernel.quantize(k, rule), scope)
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
            built = self.function(key, lambda: kernel.quantize(k, rule, Windows(shape)), scope)
            return self._call(built, [x], m, specs, scope)
        pixels = self._quantize(kernel, self.rows(x, scope), x, shape.channels, rule, scope)
        images = [
            scope.emit(relax.op.reshape(part, [*x.ty.shape.values[:3], operand.stride]))
            for part, operand in zip(pixels, plan, strict=True)
        ]
        name = ("gather", kernel.quantizer, shape.name)
        built = self.function(name, lambda: gather_windows(shape, plan), scope)
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
            self.function(key, build, scope),
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
