"""f(weight)  ->  weight'        f: permute_dims, reshape, add, multiply, ... of constants alone

The folded weight is computed when it is loaded: no float copy stays in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import constant_of, is_constant
from lbcompiler.ir.model import Array, Model, Weight, fresh
from lbcompiler.ir.rewrite import Scope, rewrite

FOLDED: dict[str, Callable[..., Array]] = {
    "relax.permute_dims": lambda call, a: a.transpose(
        call.attrs.axes and [int(i) for i in call.attrs.axes]
    ),
    "relax.reshape": lambda call, a: a.reshape(_shape(call)),
    "relax.expand_dims": lambda call, a: a.reshape(_shape(call)),
    "relax.squeeze": lambda call, a: a.reshape(_shape(call)),
    "relax.astype": lambda call, a: a.astype(str(call.ty.dtype)),
    "relax.add": lambda _, a, b: a + b,
    "relax.subtract": lambda _, a, b: a - b,
    "relax.multiply": lambda _, a, b: a * b,
    "relax.divide": lambda _, a, b: a / b,
}


def _shape(call: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in call.ty.shape.values)


@dataclass(frozen=True)
class FoldConstants:
    name: ClassVar[str] = "fold_constants"

    def __call__(self, model: Model) -> Model:
        weights = dict(model.weights)

        def visit(call: Any, scope: Scope) -> Any:
            fold = FOLDED.get(getattr(call.op, "name", ""))
            if fold is None:
                return None
            tensors = [scope.value(a) for a in call.args if isinstance(a.ty, relax.TensorType)]
            if not any(ops.is_call_to(t, ops.WEIGHT) for t in tensors):
                return None  # small constants are folded when kernels are built
            if not all(is_constant(t) for t in tensors):
                return None
            source = next(str(t.attrs["name"]) for t in tensors if ops.is_call_to(t, ops.WEIGHT))
            name = fresh(weights, f"{source}.{call.op.name.removeprefix('relax.')}")
            dtype = str(call.ty.dtype)

            def load() -> Array:
                values = [constant_of(t, weights) for t in tensors]
                return np.asarray(fold(call, *values), dtype, order="C")

            weights[name] = Weight(_shape(call), dtype, load)
            return ops.weight(name, _shape(call), dtype)

        return replace(model, module=rewrite(model.module, visit), weights=weights)
