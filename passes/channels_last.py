"""f(nchw(y), ..)                ->  nchw(f'(y, ..))        f walks over pixels: channels_last_rules
permute_dims(nchw(y), axes)  ->  permute_dims(y, ..), or y where one undoes the other

with nchw(y) = permute_dims(y, [0, 3, 1, 2]). A convolution's GEMM writes a row a pixel and its
windows are read a pixel at a time, so activations stay channels-last from one convolution to the
next, and what is left of the permutations stands where the model itself asks for NCHW: at its
inputs and outputs, and before an op that has no rule."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lbcompiler.ir.model import Model
from lbcompiler.ir.permute import PERMUTE, axes_of, permuted
from lbcompiler.ir.rewrite import Scope, rewrite
from lbcompiler.passes.channels_last_rules import RULES, Pixels


@dataclass(frozen=True)
class ChannelsLast:
    name: ClassVar[str] = "channels_last"

    def __call__(self, model: Model) -> Model:
        def visit(call: Any, scope: Scope) -> Any:
            if call.op == PERMUTE:
                return permuted(call.args[0], axes_of(call), scope)
            rule = RULES.get(getattr(call.op, "name", ""))
            return None if rule is None else rule(call, Pixels(scope))

        def cast(x: Any, ty: Any, scope: Scope) -> Any:
            return Pixels(scope).cast(x, ty)

        return replace(model, module=rewrite(model.module, visit, cast=cast))
