"""quantize(norm(f(x) + y, g[, b]))  ->  fused_quantize(x, y, g[, b])
quantize(f(x) * y)                ->  fused_quantize(x, y)
quantize(hadamard(x))             ->  fused_quantize(x), and so for each x above

with norm layer_norm, rms_norm or none, f an activation or none, + y, * y or neither: one sweep over
rows that are in the cache, where each step alone would read and write all of them. What others read
of the sum (the next residual) or of the norm (a residual behind it) is a further result:

s = x + y, n = norm(s), f(s), g(n), quantize(n)
                                  ->  q = fused_quantize(x, y, ..), f(q.sum), g(q.row), q

The call stands where its first step stood, so that every reader comes behind it. Gains and offsets
are known, and both operands have one shape; else a step stays as it is, and only those behind it
are fused."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from lbcompiler.formats import format_named
from lbcompiler.ir import ops
from lbcompiler.ir.constants import is_constant
from lbcompiler.ir.model import Model
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rewrite import Scope, bindings, operands, rewrite
from lbcompiler.ir.rotation import rotation_of
from lbcompiler.passes.fuse_linear import EPILOGUE_OF

ADD, MULTIPLY = (tvm.ir.Op.get(f"relax.{name}") for name in ("add", "multiply"))
COMBINES = {ADD: "add", MULTIPLY: "multiply"}
LAYER_NORM, RMS_NORM = (tvm.ir.Op.get(f"relax.nn.{name}_norm") for name in ("layer", "rms"))


@dataclass(frozen=True)
class FuseActivationQuantize:
    """`keeps_costly_rows`: a row with an activation goes to memory, for quantizers that would
    compute it each time they read it.
    """

    keeps_costly_rows: bool = True
    name: ClassVar[str] = "fuse_activation_quantize"

    def __call__(self, model: Model) -> Model:
        fusions = _Search(model.module["main"], self.keeps_costly_rows).fusions()
        roles = {var: fusion for fusion in fusions for var in fusion.variables}
        emitted: dict[Any, Any] = {}

        def visit(call: Any, scope: Scope) -> Any:
            fusion = roles.get(scope.variable)
            if fusion is None:
                return None
            if scope.variable.same_as(fusion.start):
                emitted[fusion.quantize] = scope.emit(fusion.call(scope))
            found = emitted[fusion.quantize]
            if scope.variable.same_as(fusion.quantize):
                return found
            kept = fusion.position(scope.variable)
            return None if kept is None else relax.TupleGetItem(found, kept)

        return replace(model, module=rewrite(model.module, visit))


@dataclass(frozen=True)
class _Steps:
    """What a prologue computes of which operands; the variables of its sum and its row, None where
    there is none, or none to take.
    """

    prologue: Prologue
    operands: tuple[Any, ...]
    sum: Any = None
    row: Any = None

    @property
    def variables(self) -> tuple[Any, ...]:
        """In the order in which they are bound."""
        return tuple(var for var in (self.sum, self.row) if var is not None)


@dataclass(frozen=True)
class _Fusion:
    """What becomes one call, over the variables of the module it was found in; it stands where
    `start` stood.
    """

    steps: _Steps
    quantize: Any
    attrs: Any

    @property
    def start(self) -> Any:
        return self.variables[0]

    @property
    def variables(self) -> tuple[Any, ...]:
        return (*self.steps.variables, self.quantize)

    def call(self, scope: Scope) -> Any:
        # a gain may be bound behind the sum: weights are named anew, and known wherever they stand
        operands = [
            scope.emit(operand) if is_constant(operand) else scope.moved(operand)
            for operand in self.steps.operands
        ]
        fmt, rule = format_named(str(self.attrs["format"])), str(self.attrs["scale_rule"])
        return ops.fused_quantize(operands, self.steps.prologue, fmt=fmt, scale_rule=rule)

    def position(self, var: Any) -> int | None:
        """Where the call's result holds a variable; None for one that nobody else reads."""
        parts, prologue = format_named(str(self.attrs["format"])).parts, self.steps.prologue
        if var.same_as(self.steps.row):
            return parts + int(prologue.keeps_sum) if prologue.keeps_row else None
        return parts if prologue.keeps_sum else None


class _Search:
    def __init__(self, main: Any, keeps_costly_rows: bool) -> None:
        self.keeps_costly_rows = keeps_costly_rows
        self.bound = {binding.var: binding.value for binding in bindings(main)}
        self.uses: Counter[Any] = Counter()
        for value in [*self.bound.values(), main.body.body]:
            self.uses.update(leaf for leaf in operands(value) if isinstance(leaf, relax.Var))
        self.taken: set[Any] = set()  # a value is a step of one fusion

    def fusions(self) -> list[_Fusion]:
        quantized = [
            (var, value) for var, value in self.bound.items() if ops.is_call_to(value, ops.QUANTIZE)
        ]
        found = [self._fusion(var, value) for var, value in quantized]
        return [fusion for fusion in found if fusion is not None]

    def _fusion(self, quantize: Any, call: Any) -> _Fusion | None:
        row, rotation = call.args[0], None
        readers = self.uses[row]
        turned = self._call(row)
        if turned is not None and turned.op == ops.HADAMARD:
            row, rotation = turned.args[0], rotation_of(turned.attrs)
            readers += self.uses[row] - 1  # those of the row before its rotation
        steps = self._steps(row, readers, is_rotated=rotation is not None)
        if steps is None and rotation is None:
            return None
        if steps is None:
            steps = _Steps(Prologue(), (row,))
        self.taken.update(steps.variables)
        prologue = replace(steps.prologue, rotation=rotation)
        return _Fusion(replace(steps, prologue=prologue), quantize, call.attrs)

    def _steps(self, row: Any, readers: int, *, is_rotated: bool) -> _Steps | None:
        """What computes a row that has so many readers, None where there is nothing to take."""
        if self._call(row) is None:
            return None
        prologue, gains = self._norm(row)
        inner = row if prologue.norm == "none" else self._call(row).args[0]
        # a product under a norm's sums could become an FMA, on some instruction sets
        combined, operands = self._combined(inner, MULTIPLY if prologue.norm != "none" else None)
        if combined is None and prologue.norm == "none":
            return None
        if combined is None:
            operands = [inner]
        else:
            prologue = replace(prologue, activation=combined.activation, combine=combined.combine)
        has_sum = combined is not None and prologue.norm != "none"
        # a quantizer reads a row several times: one that is costly to compute goes to memory,
        # unless its rotation has a place for it
        has_activation = prologue.activation != "none"
        is_costly = self.keeps_costly_rows and has_activation and not is_rotated
        prologue = replace(
            prologue,
            keeps_sum=has_sum and self.uses[inner] > 1,
            keeps_row=readers > 1 or is_costly,
        )
        return _Steps(prologue, (*operands, *gains), inner if has_sum else None, row)

    def _norm(self, row: Any) -> tuple[Prologue, list[Any]]:
        call = self._call(row)
        if call.op not in (LAYER_NORM, RMS_NORM):
            return Prologue(), []
        x, *gains = call.args
        last = len(x.ty.shape.values) - 1
        known = [self.bound.get(gain, gain) for gain in gains]
        is_whole = call.op == RMS_NORM or (call.attrs.center and call.attrs.scale)
        along_rows = [int(axis) for axis in call.attrs.axes] in ([-1], [last])
        if not (is_whole and along_rows and all(map(is_constant, known))):
            return Prologue(), []
        norm = "rms_norm" if call.op == RMS_NORM else "layer_norm"
        return Prologue(norm=norm, epsilon=float(call.attrs.epsilon)), known

    def _combined(self, var: Any, refused: Any) -> tuple[Prologue | None, list[Any]]:
        """The steps before a norm, with their operands; None where there is none to take."""
        call = self._call(var)
        if call is None:
            return None, []
        if call.op in COMBINES and call.op != refused and _same_shape(*call.args):
            combine = COMBINES[call.op]
            for x, other in (call.args, reversed(call.args)):
                activated = self._activated(x)
                if activated is not None and self.uses[x] == 1:
                    name, inner = activated
                    return Prologue(name, combine), [inner, other]
            return Prologue(combine=combine), list(call.args)
        activated = self._activated(var)
        if activated is None:
            return None, []
        return Prologue(activated[0]), [activated[1]]

    def _activated(self, var: Any) -> tuple[str, Any] | None:
        call = self._call(var)
        name = None if call is None else EPILOGUE_OF.get(getattr(call.op, "name", ""))
        return None if name is None else (name, call.args[0])

    def _call(self, var: Any) -> Any:
        """The call behind a variable that is free to be a step; None for what is none."""
        value = self.bound.get(var)
        return value if isinstance(value, relax.Call) and var not in self.taken else None


def _same_shape(a: Any, b: Any) -> bool:
    shapes = [list(x.ty.shape.values) for x in (a, b)]
    return len(shapes[0]) == len(shapes[1]) and all(
        ops.ANALYZER.can_prove_equal(m, n) for m, n in zip(*shapes, strict=True)
    )
