"""From a Relax module to an artifact's program for one architecture: the host's library and the
kernels' cubins.

    legalize, fuse          as for a CPU
    schedule                `schedule_module`: every PrimFunc that does not bring its threads
    plan memory             one storage for what does not live at once
    generate                host code (the virtual machine's library), a CUDA text for each kernel
    nvcc                    a cubin for each text, from the cache where it was compiled before
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm
from tvm import relax, s_tir, tirx

from lbcompiler.ir.dump import Dump, no_dump
from lbcompiler.ir.model import Dim
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.cache import compile_all
from lbcompiler.targets.cuda.codegen import generate, is_schedulable
from lbcompiler.targets.cuda.device_code import DeviceCode
from lbcompiler.targets.cuda.legalize import KEPT, LEGALIZATIONS
from lbcompiler.targets.cuda.schedule import schedule_module
from lbcompiler.targets.cuda.toolchain import find_nvcc
from lbcompiler.targets.virtual_machine import Built, bound_dimensions, plan_memory


def build(
    module: Any,
    arch: Arch,
    dims: Sequence[Dim],
    library: Path,
    dump: Dump = no_dump,
) -> DeviceCode:
    """Writes the host's library and gives the kernels.

    `module` is one whose quantized linears are calls of kernels; `dims` name its dynamic
    dimensions. Raises ConfigError without an nvcc that compiles for `arch`.
    """
    nvcc = find_nvcc()
    nvcc.check(arch)  # before the work, not behind it
    executable, kernels = generate(lowered(module, arch, dims, dump), arch.tvm_target)
    Built(executable).link(library)
    return DeviceCode.of(kernels, compile_all([k.source for k in kernels], arch, nvcc), arch)


def _rewrite_reshapes(module: Any, _: Any) -> Any:
    """TVM's RewriteDataflowReshape, which stops at a PrimFunc that is not made of blocks: such
    a one has an empty block meanwhile.
    """
    blocks, whole = module.clone(), {}
    empty = s_tir.SBlockRealize(
        [], True, s_tir.SBlock([], [], [], "root", tirx.Evaluate(tirx.const(0, "int32")))
    )
    for variable, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc) and not is_schedulable(function):
            whole[variable] = function
            blocks.update_func(variable, function.with_body(empty))
    rewritten = relax.transform.RewriteDataflowReshape()(blocks)
    for variable, function in whole.items():
        rewritten.update_func(variable, function)
    return rewritten


RewriteReshapes = tvm.transform.module_pass(_rewrite_reshapes, opt_level=0, name="RewriteReshapes")


def lowered(module: Any, arch: Arch, dims: Sequence[Dim] = (), dump: Dump = no_dump) -> Any:
    """The module with scheduled PrimFuncs and what the virtual machine calls beside them."""
    module = bound_dimensions(module, dims)
    passes = [
        relax.transform.LegalizeOps(LEGALIZATIONS, skip_ops=list(KEPT)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        RewriteReshapes,  # reads the loops that scheduling takes away
        relax.transform.DeadCodeElimination(),
    ]
    with tvm.transform.PassContext(opt_level=3), arch.schedule_target:
        module = tvm.transform.Sequential(passes)(module)
        dump("fused", module)
        module = schedule_module(module, arch)
        dump("scheduled", module)
        module = plan_memory(module)
        dump("planned", module)
        return module
