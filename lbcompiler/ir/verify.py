"""What must hold between any two passes, beyond TVM's own well-formedness."""

from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Model
from lbcompiler.ir.rewrite import calls


class InvalidIRError(Exception):
    """The module and its tables disagree."""


def verify(model: Model) -> None:
    """Raises InvalidIRError, or TVM's own error, unless weights, layers and module agree."""
    relax.analysis.well_formed(model.module)
    for call in calls(model.module):
        if call.op == ops.WEIGHT:
            _check_weight(model, call)
        elif call.op in (ops.DENSE, ops.CONV, ops.LINEAR):
            _check_layer(model, str(call.attrs["layer"]))


def _check_weight(model: Model, call: object) -> None:
    name = str(call.attrs["name"])  # type: ignore[attr-defined]
    held = model.weights.get(name)
    if held is None:
        raise InvalidIRError(f"lbc.weight names {name!r}, which the weight table does not hold")
    typed = call.ty  # type: ignore[attr-defined]
    said = (tuple(int(d) for d in typed.shape.values), str(typed.dtype))
    if said != (tuple(held.shape), held.dtype):
        raise InvalidIRError(
            f"lbc.weight {name!r} is {said} in the module, {held.shape} {held.dtype} in the table"
        )


def _check_layer(model: Model, name: str) -> None:
    if name not in model.layers:
        raise InvalidIRError(f"layer {name!r} has no record")
