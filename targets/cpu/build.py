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
from tvm.relax import vm_build

from lbcompiler.ir.dump import Dump, no_dump
from lbcompiler.ir.model import Dim
from lbcompiler.targets.cpu.keep_apart import KeepApart
from lbcompiler.targets.cpu.legalize import KEPT, LEGALIZATIONS
from lbcompiler.targets.cpu.objects import compile_objects, host_module
from lbcompiler.targets.cpu.schedule import schedule_module
from lbcompiler.targets.virtual_machine import Built, bound_dimensions, plan_memory


def lower_to_kernels(module: Any, isa_target: Any) -> Any:
    """Relax ops -> calls of fused PrimFuncs, not yet scheduled; equal functions are one."""
    passes = [
        relax.transform.LegalizeOps(LEGALIZATIONS, skip_ops=list(KEPT)),
        relax.transform.AnnotateTIROpPattern(),
        KeepApart,
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),  # reads the loops that scheduling takes away
        relax.transform.DeadCodeElimination(),
    ]
    with isa_target:
        return tvm.transform.Sequential(passes)(module)


def build(
    module: Any,
    isa_target: Any,
    dims: Sequence[Dim] = (),
    dump: Dump = no_dump,
) -> Built:
    """Compile a module whose quantized linears are already calls of scheduled PrimFuncs.

    `isa_target` is a `tvm.target.Target` of kind llvm; `dims` name the dynamic dimensions (the
    symbolic variables of the same names) and their bounds. `dump` is called with the module
    after fusion, scheduling and memory planning.
    """
    module = bound_dimensions(module, dims)
    with tvm.transform.PassContext(opt_level=3):
        module = lower_to_kernels(module, isa_target)
        dump("fused", module)
        module = schedule_module(module, isa_target)
        dump("scheduled", module)
        with isa_target:
            module = plan_memory(module)
            dump("planned", module)
            return _built(module, isa_target)


def _built(module: Any, isa_target: Any) -> Built:
    """`relax.build`, but for the PrimFuncs, which are compiled one by one: by its private steps, of
    the one TVM that this package asks for.
    """
    builder = relax.ExecBuilder()
    rest = vm_build._vmcodegen(builder, module)
    executable = vm_build._vmlink(builder, isa_target, ext_libs=[host_module(isa_target)])
    return Built(executable, compile_objects(list(rest.functions.values()), isa_target))
