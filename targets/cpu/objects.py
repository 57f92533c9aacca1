"""PrimFunc after PrimFunc to object code, as many at once as there are cores, each from the cache
where it was compiled before.

TVM puts all functions of a module into one LLVM module, on one core. They do not call each other,
so each can be one of its own, and a model's kernels are those of the last compilation but for the
few whose shapes or formats have changed.
"""

import tempfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.tirx import compilation_pipeline

from lbcompiler.targets.code_cache import CodeCache, Entry, at_once

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
    tirx.transform.AnnotateEntryFunc,
    tirx.transform.SplitHostDevice,
    tirx.transform.MakePackedAPI,
    tirx.transform.BF16StorageLegalize,
)
_TIR_PIPELINE = "lbcompiler.cpu"
_OPT_LEVEL = 3


def tir_pipeline() -> str:
    """The name under which TVM knows the passes that scheduled functions go through."""
    compilation_pipeline.register_tir_pipeline(_TIR_PIPELINE, _tir_pipeline)
    return _TIR_PIPELINE


def _tir_pipeline() -> tuple[Any, Any, Any]:
    """The passes, and what TVM asks for beside them: those that finish host and device code."""
    passes = tvm.transform.Sequential([make() for make in _TIR_PASSES])
    _, host, device = compilation_pipeline.get_tir_pipeline("s_tir")
    return passes, host, device


def compile_objects(functions: Mapping[str, Any], target: Any) -> list[bytes]:
    """Scheduled PrimFuncs by name -> an object file of each, for a target of kind llvm.

    Raises ConfigError for a limit of the cache that is no number.
    """
    limit = CACHE.limit_bytes()

    def compiled(name: str) -> bytes:
        function = functions[name]
        parts = (name, _compiler(), str(target), tvm.ir.save_json(function))
        return CACHE.held(parts, lambda: _compiled(name, function, target)).code

    objects = at_once(compiled, list(functions))
    CACHE.prune(limit)
    return objects


def host_module(target: Any) -> Any:
    """A module of machine code without a function: where what is linked beside it finds its
    target.
    """
    return tirx.build(tvm.IRModule(), target=target, pipeline=tir_pipeline())


def code_of(name: str, function: Any, target: Any) -> Any:
    """A module of machine code with the function in it."""
    module = tvm.IRModule({tvm.ir.GlobalVar(name): function})
    with tvm.transform.PassContext(opt_level=_OPT_LEVEL), target:
        return tirx.build(module, target=target, pipeline=tir_pipeline())


def _compiled(name: str, function: Any, target: Any) -> Entry:
    with tempfile.TemporaryDirectory(prefix="lbc-object-") as folder:
        path = Path(folder, "kernel.o")
        code_of(name, function, target).write_to_file(str(path))
        return Entry(path.read_bytes())


@cache
def _compiler() -> str:
    """What makes code of a function, beside the target."""
    llvm = tvm.get_global_func("target.llvm_version_major")()
    passes = " ".join(make().info.name for make in _TIR_PASSES)
    return f"tvm {tvm.__version__} llvm {llvm} opt {_OPT_LEVEL} {passes}"
