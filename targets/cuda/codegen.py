"""Scheduled PrimFuncs -> host code in the virtual machine's executable, and one CUDA text a kernel.

TVM lowers the two kinds of functions that there are here by two pipelines: those that were
scheduled (s_tir) and those that were written with their threads and barriers (TIRx). Device code is
caught where it leaves TVM, before TVM would compile all of it as one text; each kernel becomes a
text of its own, so that equal ones are compiled once, here and in the cache.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx import compilation_pipeline
from tvm.tirx.build import codegen_build

from lbcompiler.errors import ModelError

PIPELINE = "lbcompiler.cuda"
COMPILE = "tvm_callback_cuda_compile"
DYNAMIC_SHARED = "tirx.use_dyn_shared_memory"
_BOUNDS = re.compile(r"__launch_bounds__\((\d+)")


@dataclass(frozen=True)
class Kernel:
    """One `__global__` function. What TVM's launcher needs to know of it: the dtypes of its
    arguments, those behind them that say how it is launched, and which are TMA tensor maps.

    `threads` of a block; `dynamic_shared` bytes asked for at launch, None where they are computed
    by then.
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    launch: tuple[str, ...]
    tensor_maps: tuple[bool, ...]
    threads: int
    dynamic_shared: int | None


@dataclass
class _Caught:
    device: dict[str, Any] = field(default_factory=dict)  # kernel -> its lowered PrimFunc
    host: Any = None
    functions: set[str] = field(default_factory=set)  # that work on the device's memory


def generate(module: Any, target: Any) -> tuple[Any, list[Kernel]]:
    """(the virtual machine's executable without device code, the kernels it calls by name).

    `module` holds lowered Relax functions and scheduled PrimFuncs; `target` is a CUDA target with a
    host.
    """
    caught = _Caught()
    compilation_pipeline.register_tir_pipeline(PIPELINE, lambda: _pipeline(caught))
    executable = tvm.compile(module, target=target, relax_pipeline=None, tir_pipeline=PIPELINE)
    _check_all_launch(caught)
    launches = _launches(caught.host)
    with _uncompiled():
        kernels = [_kernel(name, f, target, launches) for name, f in sorted(caught.device.items())]
    return executable, kernels


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Where TVM's CUDA runtime is loaded, TVM compiles what it generates, by NVRTC. Here it is told
    that this was done: the text alone is wanted.
    """
    held = tvm_ffi.get_global_func(COMPILE, allow_missing=True)
    tvm_ffi.register_global_func(COMPILE, lambda _text: b"text", override=True)
    try:
        yield
    finally:
        if held is None:
            tvm_ffi.remove_global_func(COMPILE)
        else:
            tvm_ffi.register_global_func(COMPILE, held, override=True)


def _pipeline(caught: _Caught) -> tuple[Any, Callable[[], Any], Callable[[], Any]]:
    scheduled, finish_host, finish_device = compilation_pipeline.get_tir_pipeline("s_tir")
    written, _, _ = compilation_pipeline.get_tir_pipeline("tirx")

    def lower(module: Any, _: Any) -> Any:
        parts: dict[bool, dict[Any, Any]] = {True: {}, False: {}}
        for variable, function in module.functions_items():
            parts[is_schedulable(function)][variable] = function
            if function.attrs["target"].kind.name == "cuda":
                caught.functions.add(str(function.attrs["global_symbol"]))
        lowered = scheduled(tvm.IRModule(parts[True], attrs=module.attrs))
        lowered.update(written(tvm.IRModule(parts[False], attrs=module.attrs)))
        return lowered

    def host() -> Any:
        def run(module: Any) -> Any:
            caught.host = module  # before its launches become calls of C functions
            return finish_host()(module)

        return run

    def device() -> Any:
        def run(module: Any) -> Any:
            for _, function in finish_device()(module).functions_items():
                caught.device[str(function.attrs["global_symbol"])] = function
            return tvm.IRModule({})

        return run

    return tvm.transform.module_pass(lower, opt_level=0, name=PIPELINE), host, device


def _check_all_launch(caught: _Caught) -> None:
    """A function without a kernel would run on the host, in the device's memory."""
    pattern = re.compile(r"(.*)_kernel(_\d+)?")
    launched = {match.group(1) for name in caught.device if (match := pattern.fullmatch(name))}
    idle = sorted(caught.functions - launched)
    if idle:
        raise ModelError(
            f"the model needs {', '.join(idle)}, which has no kernel for GPUs: compile it for "
            "--target cpu"
        )


def is_schedulable(function: Any) -> bool:
    """Whether a PrimFunc is made of blocks that schedules move, not of threads and barriers."""
    return bool(function.attrs and function.attrs.get("s_tir", False))


def _kernel(name: str, function: Any, target: Any, launches: Mapping[str, list[Any]]) -> Kernel:
    source = codegen_build(tvm.IRModule({name: function}), target).inspect_source()
    tags = tuple(str(tag) for tag in function.attrs["tirx.kernel_launch_params"])
    dynamic: int | None = 0
    if DYNAMIC_SHARED in tags:
        sizes = [arguments[-1] for arguments in launches.get(name, [])]
        is_known = sizes and all(isinstance(size, tirx.IntImm) for size in sizes)
        dynamic = max(map(int, sizes)) if is_known else None
    bounds = _BOUNDS.search(source)
    return Kernel(
        name=name,
        source=source,
        arguments=tuple(_dtype(param) for param in function.params),
        launch=tags,
        tensor_maps=tuple(_is_tensor_map(param) for param in function.params),
        threads=int(bounds.group(1)) if bounds else 1,
        dynamic_shared=dynamic,
    )


def _dtype(param: Any) -> str:
    return "handle" if isinstance(param.ty, tvm.ir.PointerType) else str(param.ty.dtype)


def _is_tensor_map(param: Any) -> bool:
    held = param.ty
    return isinstance(held, tvm.ir.PointerType) and "TensorMap" in type(held.element_type).__name__


def _launches(host: Any) -> dict[str, list[Any]]:
    """By kernel: the arguments of every launch in the host's code."""
    found: dict[str, list[Any]] = {}

    def look(call: Any) -> Any:
        if "call_ffi_kernel" in str(call.op):
            name, *arguments = call.args
            found.setdefault(str(name.value), []).append(arguments)
        return call

    for _, function in host.functions_items():
        tvm_ffi.structural_map(function.body, (tvm.ir.Call, look))
    return found
