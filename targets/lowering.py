"""What lowering linears to calls of kernels takes on every target."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from lbcompiler.formats import format_named
from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model
from lbcompiler.ir.prologue import Prologue, prologue_of
from lbcompiler.ir.rewrite import Scope, bindings, rewrite
from lbcompiler.targets.configs import Tuned, fields_of

KernelFor = Callable[..., Any]
ANALYZER = tvm.sym.Analyzer()


class Lowering(ABC):
    """layers: their records, to be completed; functions: what is asked of a kernel -> its
    GlobalVar; quantized: what linears share of an activation -> its parts; fused: the values of a
    fused quantize -> its call; readers: the first linear that reads a quantized activation.
    """

    def __init__(
        self,
        kernel_for: KernelFor,
        tuned: Tuned,
        layers: dict[str, Layer],
        readers: dict[Any, Any],
    ) -> None:
        self.kernel_for = kernel_for
        self.tuned = tuned
        self.layers = layers
        self.readers = readers
        self.functions: dict[tuple[Any, ...], Any] = {}
        self.quantized: dict[tuple[Any, ...], list[Any]] = {}
        self.fused: dict[Any, Any] = {}

    @classmethod
    def apply(cls, model: Model, kernel_for: KernelFor, tuned: Tuned) -> Model:
        """The model with all its linears lowered."""
        lowering = cls(kernel_for, tuned, dict(model.layers), first_readers(model.module))
        module = rewrite(model.module, lowering.visit)
        return replace(model, module=module, layers=lowering.layers)

    def visit(self, call: Any, scope: Scope) -> Any:
        """For `rewrite`: a linear or a fused quantize becomes calls of kernels."""
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
        n, k, epilogue = int(call.attrs["n"]), int(k), str(call.attrs["epilogue"])
        if source is not None and source.op == ops.FUSED_QUANTIZE:
            operands = self.operands_of(kernel, source, scope)
        else:
            rule = None if source is None else str(source.attrs["scale_rule"])
            operands = self.activation_operands(kernel, x, k, rule, scope)
        chosen = self.tuned.choose(kernel, n, k)
        layer = str(call.attrs["layer"])
        self.layers[layer] = replace(
            self.layers[layer], config=fields_of(chosen.config), config_source=chosen.source
        )
        has_bias = bias is not None
        options = {"bias": has_bias, "epilogue": epilogue, "config": chosen.config}
        key = ("gemm", kernel.name, n, k, *self.bias_key(has_bias), epilogue)
        gemm = self.function(key, lambda: kernel.gemm(n, k, **options), scope)
        weights = [*packed, *([bias] if has_bias else [])]
        scratch = self.scratch(kernel, n, chosen.config)
        return product_of(gemm, operands, weights, lead, n, scope, scratch)

    @abstractmethod
    def activation_operands(
        self, kernel: Any, x: Any, k: int, rule: str | None, scope: Scope
    ) -> list[Any]:
        """What the GEMM reads of x (.., k), quantized by the scale rule; None: x is float."""

    @abstractmethod
    def bias_key(self, has_bias: bool) -> tuple[Any, ...]:
        """The part of a GEMM's name that says whether it adds a bias."""

    def scratch(self, _kernel: Any, _n: int, _config: Any) -> list[Any]:
        """The types of a GEMM's results behind y, which nobody reads."""
        return []

    def function(self, key: tuple[Any, ...], build: Callable[[], Any], scope: Scope) -> Any:
        """The GlobalVar of what is built, once for a key; None where nothing is."""
        if key not in self.functions:
            built = build()
            if built is not None:
                name = "_".join(str(part) for part in key if not isinstance(part, Prologue))
                built = scope.builder.add_func(built, name)
            self.functions[key] = built
        return self.functions[key]

    @abstractmethod
    def run_prologue(
        self,
        kernel: Any,
        args: Sequence[Any],
        k: int,
        rule: str,
        prologue: Prologue,
        scope: Scope,
    ) -> tuple[list[Any], list[Any]]:
        """(the float results, the operands of a GEMM) of a quantize that computes its rows."""

    def fused_quantize(self, call: Any, scope: Scope) -> Any:
        """The tuple that the call was: in place of its codes what linears find its operands by."""
        kernel = self.kernel_for(*ops.linear_formats(self.readers[scope.variable]))
        kept, operands = self._run_fused(kernel, call, prologue_of(call.attrs), scope)
        self.quantized[(kernel.quantizer, call)] = operands
        self.fused[operands[0]] = call
        shape = relax.ShapeExpr(call.args[0].ty.shape.values)
        rows = [scope.emit(relax.op.reshape(row, shape)) for row in kept]
        parts = format_named(str(call.attrs["format"])).parts
        return relax.Tuple([*[operands[0]] * parts, *rows])

    def operands_of(self, kernel: Any, call: Any, scope: Scope) -> list[Any]:
        """A fused quantize as this kernel wants it."""
        key = (kernel.quantizer, call)
        if key not in self.quantized:  # another kernel than the first: the float results are there
            prologue = replace(prologue_of(call.attrs), keeps_sum=False, keeps_row=False)
            _, self.quantized[key] = self._run_fused(kernel, call, prologue, scope)
        return self.quantized[key]

    def _run_fused(
        self, kernel: Any, call: Any, prologue: Prologue, scope: Scope
    ) -> tuple[list[Any], list[Any]]:
        k, rule = int(call.args[0].ty.shape.values[-1]), str(call.attrs["scale_rule"])
        return self.run_prologue(kernel, call.args, k, rule, prologue, scope)

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
    scratch: Sequence[Any] = (),
) -> Any:
    """y (.., n) of a GEMM's call; `weights` are the packed ones and what follows them, `scratch`
    the types of further results, which nobody reads.
    """
    m = operands[0].ty.shape.values[0]
    types = [relax.TensorType([m, n], "float32"), *scratch]
    y = results_of(gemm, [*operands, *weights], types, scope)[0]
    return relax.op.reshape(y, [*lead, n]) if len(lead) != 1 else y


def quantize_of(activation: list[Any], scope: Scope) -> Any:
    """The `lbc.quantize` whose parts these are, None for an activation in float."""
    part = scope.value(activation[0])
    if not isinstance(part, relax.TupleGetItem):
        return None
    return scope.call_to(part.tuple_value, ops.QUANTIZE)


def first_readers(module: Any) -> dict[Any, Any]:
    """The variable of a quantized activation -> the first linear that reads it."""
    readers: dict[Any, Any] = {}
    quantized: dict[Any, Any] = {}  # a part -> the variable
    for binding in bindings(module["main"]):
        value = binding.value
        if isinstance(value, relax.TupleGetItem):
            quantized[binding.var] = value.tuple_value
        elif ops.is_call_to(value, ops.LINEAR) and value.args[0] in quantized:
            readers.setdefault(quantized[value.args[0]], value)
    return readers
