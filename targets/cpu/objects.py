"""PrimFunc after PrimFunc to object code, as many at once as there are cores, each from the cache
where it was compiled before.

TVM puts all functions of a module into one LLVM module, on one core. They do not call each other,
so each can be one of its own, and a model's kernels are those of the last compilation but for the
few whose shapes or formats have changed.
"""

import os
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

from lbcompiler.targets.code_cache import CodeCache, Entry
from lbcompiler.targets.cores import at_once

CACHE = CodeCache("cpu", ".o")

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
    tirx.transform.SplitHostDevice,
    tirx.transform.MakePackedAPI,
    tirx.transform.BF16StorageLegalize,
)
_TIR_PIPELINE = "lbcompiler.cpu"
_OPT_LEVEL = 3
_NEVER_THE_SAME = "shape_func"  # its slots are numbered in the order of addresses


def tir_pipeline() -> str:
    """The name under which TVM knows the passes that scheduled functions go through."""
    compilation_pipeline.register_tir_pipeline(_TIR_PIPELINE, _tir_pipeline)
    return _TIR_PIPELINE


def _tir_pipeline() -> tuple[Any, Any, Any]:
    """The passes, and what TVM asks for beside them: those that finish host and device code."""
    passes = tvm.transform.Sequential([make() for make in _TIR_PASSES])
    _, host, device = compilation_pipeline.get_tir_pipeline("s_tir")
    return passes, host, device


def compile_objects(functions: Sequence[Any], target: Any) -> list[bytes]:
    """Scheduled PrimFuncs, which say their names (`global_symbol`) -> an object file of each, for a
    target of kind llvm.

    Raises ConfigError for a limit of the cache that is no number.
    """

    def compiled(function: Any) -> bytes:
        make = partial(_compiled, function, target)
        if str(function.attrs["global_symbol"]).startswith(_NEVER_THE_SAME):
            return make().code
        return CACHE.held((_compiler(), str(target), tvm.ir.save_json(function)), make).code

    objects = at_once(compiled, functions)
    CACHE.prune()
    return objects


def host_module(target: Any) -> Any:
    """A module of machine code without a function: TVM asks the first such one what to compile the
    program of the virtual machine for, and without any writes C++ instead.
    """
    return tirx.build(tvm.IRModule(), target=target, pipeline=tir_pipeline())


def code_of(function: Any, target: Any) -> Any:
    """A module of machine code with the function in it."""
    with tvm.transform.PassContext(opt_level=_OPT_LEVEL), target:
        return tirx.build(function, target=target, pipeline=tir_pipeline())


def _compiled(function: Any, target: Any) -> Entry:
    """By way of memory: LLVM ends the process where a disk is full."""
    code = code_of(function, target)
    with open(os.memfd_create("kernel"), "rb") as file:
        code.write_to_file(f"/proc/self/fd/{file.fileno()}", "o")
        return Entry(file.read())


@cache
def _compiler() -> str:
    """What makes code of a function, beside the target."""
    llvm = tvm.get_global_func("target.llvm_version_major")()
    passes = " ".join(
        f"{make.func.__name__}{make.args}" if isinstance(make, partial) else make.__name__
        for make in _TIR_PASSES
    )
    return f"tvm {tvm.__version__} llvm {llvm} opt {_OPT_LEVEL} {passes}"
