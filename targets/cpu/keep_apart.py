"""At most one of exp, log, erf, tanh and sigmoid in a fused kernel.

Each becomes a polynomial that reads its argument several times, and TVM's simplifier writes an
argument out wherever it is read: of tanh(log(1 + exp(x))) in one kernel it makes more code than it
ever finishes compiling. An op marked as one that only takes what follows it into its kernel (as
TVM marks a convolution) is never fused with a second of its kind.
"""

from typing import Any

import tvm
import tvm_ffi
from tvm.ir import Call
from tvm.tirx import PrimFunc

from lbcompiler.targets.cpu.schedule.expressions import op_name
from lbcompiler.targets.cpu.schedule.vector_calls import FORMS

ELEMENTWISE = (0, 1, 2)  # kElemWise, kBroadcast, kInjective of TVM's op_attr_types.h
TAKES_WHAT_FOLLOWS = 4  # kOutEWiseFusable


def keep_apart(module: Any) -> Any:
    """The module after AnnotateTIROpPattern, with the functions that hold such a call marked."""
    for variable, function in module.functions_items():
        if not isinstance(function, PrimFunc) or not function.attrs:
            continue
        if int(function.attrs.get("op_pattern", -1)) in ELEMENTWISE and _calls_a_form(function):
            module.update_func(variable, function.with_attr("op_pattern", TAKES_WHAT_FOLLOWS))
    return module


def _calls_a_form(function: Any) -> bool:
    found: list[str] = []

    def look(call: Any) -> Any:
        found.append(op_name(call))
        return call

    tvm_ffi.structural_map(function.body, (Call, look))
    return any(name in FORMS for name in found)


KeepApart = tvm.transform.module_pass(
    lambda module, _: keep_apart(module), opt_level=0, name="KeepApart"
)
