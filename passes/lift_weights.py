"""main(inputs..) { weight(a) .. weight(b) }  ->  main(inputs.., a, b)

The last pass before code is generated: weights become parameters in the order of their first use,
and what the module does not use any more leaves the table."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import Scope, calls, rewrite


@dataclass(frozen=True)
class LiftWeights:
    name: ClassVar[str] = "lift_weights"

    def __call__(self, model: Model) -> Model:
        module = relax.transform.DeadCodeElimination()(model.module)
        used = [str(call.attrs["name"]) for call in calls(module) if call.op == ops.WEIGHT]
        names = tuple(dict.fromkeys(used))
        held = {name: model.weights[name] for name in names}
        params = {
            name: relax.Var(f"w{i}", relax.TensorType(list(w.shape), w.dtype))
            for i, (name, w) in enumerate(held.items())
        }

        def visit(call: Any, _: Scope) -> Any:
            return params[str(call.attrs["name"])] if call.op == ops.WEIGHT else None

        count = len(module["main"].params)
        module = rewrite(module, visit, params=tuple(params.values()))
        module["main"] = module["main"].with_attr("num_input", count)
        return replace(model, module=module, weights=held, parameters=names)
