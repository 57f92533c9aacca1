"""From a Relax module to code for the TVM virtual machine: legalize, fuse, schedule, plan memory,
compile.

TVM's own CPU pipeline schedules nothing, so a transformer runs 40 to 80 times slower than in
onnxruntime. Here every PrimFunc that does not bring its own schedule goes through
`schedule_module`, and equal functions are compiled once: a model of thirty equal layers costs about
as much to compile as one of two.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import tvm
from tvm import relax, s_tir, tirx
from tvm.tirx import compilation_pipeline

from lbcompiler.ir.dump import Dump, no_dump
from lbcompiler.ir.model import Dim
from lbcompiler.targets.cpu.keep_apart import KeepApart
from lbcompiler.targets.cpu.legalize import KEPT, LEGALIZATIONS
from lbcompiler.targets.cpu.schedule import schedule_module
from lbcompiler.targets.virtual_machine import bound_dimensions, plan_memory

# TVM's default for schedulable functions without what serves GPUs, without its common subexpression
# elimination (LLVM does it, and faster), without RenormalizeSplitPattern and RemoveNoOp, which take
# a tenth of the time and leave LLVM the same text, and without CompactBufferAllocation, which fails
# on the bounds of a scratch buffer of symbolic shape and has nothing to gain in loops that were
# written with buffers of the right size.
_TIR_PASSES = (
    s_tir.transform.CanonicalizeLoop,
    s_tir.transform.LowerInitBlock,
    s_tir.transform.PlanAndUpdateBufferAllocationLocation,
    s_tir.transform.ConvertBlocksToOpaque,
    s_tir.transform.LowerMatchBuffer,
    s_tir.transform.StmtSimplify,
    s_tir.transform.LowerOpaqueBlock,
    tirx.transform.FlattenBuffer,
    tirx.transform.BF16ComputeLegalize,
    partial(tirx.transform.NarrowDataType, 32),
    s_tir.transform.LoopPartition,
    tirx.transform.VectorizeLoop,
    tirx.transform.StorageRewrite,
    tirx.transform.UnrollLoop,
    tirx.transform.StmtSimplify,
    s_tir.transform.RewriteUnsafeSelect,
    tirx.transform.VerifyMemory,
    tirx.transform.AnnotateEntryFunc,
    tirx.transform.SplitHostDevice,
    tirx.transform.MakePackedAPI,
    tirx.transform.BF16StorageLegalize,
)


_TIR_PIPELINE = "lbcompiler.cpu"


def tir_pipeline() -> str:
    """The name under which TVM knows the passes that scheduled functions go through."""
    compilation_pipeline.register_tir_pipeline(_TIR_PIPELINE, _tir_pipeline)
    return _TIR_PIPELINE


def _tir_pipeline() -> tuple[Any, Any, Any]:
    """The passes, and what TVM asks for beside them: those that finish host and device code."""
    passes = tvm.transform.Sequential([make() for make in _TIR_PASSES])
    _, host, device = compilation_pipeline.get_tir_pipeline("s_tir")
    return passes, host, device


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
) -> Any:
    """Compile a module whose quantized linears are already calls of scheduled PrimFuncs.

    `isa_target` is a `tvm.target.Target` of kind llvm; `dims` name the dynamic dimensions (the
    symbolic variables of the same names) and their bounds. `dump` is called with the module
    after fusion, scheduling and memory planning. Returns the executable of the virtual machine.
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
            return tvm.compile(
                module, target=isa_target, relax_pipeline=None, tir_pipeline=tir_pipeline()
            )
