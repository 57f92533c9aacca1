"""From a Relax module to code for the TVM virtual machine: legalize, fuse, schedule, plan memory,
compile.

TVM's own CPU pipeline schedules nothing, so a transformer runs 40 to 80 times slower than in
onnxruntime. Here every PrimFunc that does not bring its own schedule goes through
`schedule_module`, and equal functions are compiled once: a model of thirty equal layers costs about
as much to compile as one of two.
"""

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from lbcompiler.ir.model import Dim
from lbcompiler.targets.cpu.legalize import LEGALIZATIONS
from lbcompiler.targets.cpu.schedule import schedule_module

_CONFIG = {
    "tirx.disable_cse_tir": True,  # LLVM does it, and faster
}


def _bound_dimensions(module: Any, dims: Sequence[Dim]) -> Any:
    """Say how large each dynamic dimension may grow, so that the memory plan can be made now."""
    upper = {dim.name: dim.high for dim in dims if dim.high is not None}
    if not upper:
        return module
    bounded = module.clone() if hasattr(module, "clone") else module
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            bounded.update_func(variable, function.with_attr("tir_var_upper_bound", upper))
    return bounded


def lower_to_kernels(module: Any, isa_target: Any) -> Any:
    """Relax ops -> calls of fused PrimFuncs, not yet scheduled; equal functions are one."""
    passes = [
        relax.transform.LegalizeOps(LEGALIZATIONS),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),  # reads the loops that scheduling takes away
        relax.transform.DeadCodeElimination(),
    ]
    with isa_target:
        return tvm.transform.Sequential(passes)(module)


def build(module: Any, isa_target: Any, dims: Sequence[Dim] = ()) -> Any:
    """Compile a module whose quantized linears are already calls of scheduled PrimFuncs.

    `isa_target` is a `tvm.target.Target` of kind llvm; `dims` name the dynamic dimensions (the
    symbolic variables of the same names) and their bounds. Returns the executable of the virtual
    machine.
    """
    module = _bound_dimensions(module, dims)
    with tvm.transform.PassContext(opt_level=3, config=_CONFIG):
        module = schedule_module(lower_to_kernels(module, isa_target), isa_target)
        passes = [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
        with isa_target:
            module = tvm.transform.Sequential(passes)(module)
            return tvm.compile(module, target=isa_target, relax_pipeline=None)
