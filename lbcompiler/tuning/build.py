"""A candidate's code: compiled where joblib puts it, handed back as what a machine loads."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.build import tir_pipeline
from lbcompiler.targets.cpu.isa import ISAS, isa_named
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cuda.library import Library

Kernel = Any  # of a linear, of targets/cpu or targets/cuda
Config = Any  # the kernel's own
Code = bytes | Library  # of a CPU, of a GPU
Built = Code | str  # or why there is none
Names = tuple[str | None, str | None, str]  # weight and activation format, instruction set


def build_all(kernel: Kernel, n: int, k: int, configs: Sequence[Config], jobs: int) -> list[Built]:
    """One library with `gemm` for each config, `jobs` at a time."""
    from joblib import Parallel, delayed

    weight = None if kernel.weight is None else kernel.weight.name
    act = None if kernel.act is None else kernel.act.name
    names: Names = (weight, act, _isa(kernel))
    built: list[Built] = Parallel(n_jobs=min(jobs, len(configs)))(
        delayed(_build)(names, n, k, config) for config in configs
    )
    return built


def _build(names: Names, n: int, k: int, config: Config) -> Built:
    """Takes names, not a kernel: they cross to another process, tables of functions do not."""
    kernel = _kernel(*names)
    try:
        return library(kernel, gemm=kernel.gemm(n, k, bias=False, config=config))
    except Exception as error:  # of the generator, of TVM, of the linker: a candidate that fails
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"


def _format(name: str | None) -> Any:
    return None if name is None else FORMATS[name]


def _kernel(weight: str | None, act: str | None, isa: str) -> Kernel:
    formats = _format(weight), _format(act)
    if any(held.name == isa for held in ISAS):
        return kernel_for(*formats, isa_named(isa))
    from lbcompiler.targets.cuda.arch import arch_named
    from lbcompiler.targets.cuda.linears import linear_for

    return linear_for(*formats, arch_named(isa))


def _isa(kernel: Kernel) -> str:
    return str((kernel.arch if is_of_gpu(kernel) else kernel.isa).name)


def is_of_gpu(kernel: Kernel) -> bool:
    return hasattr(kernel, "arch")


def library(kernel: Kernel, **functions: Any) -> Code:
    """Compiled and linked for the kernel's instruction set."""
    if is_of_gpu(kernel):
        return Library.of(functions, kernel.arch)
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    target = kernel.isa.tvm_target()
    module = tvm.compile(tvm.IRModule(named), target=target, tir_pipeline=tir_pipeline())
    with tempfile.TemporaryDirectory(prefix="lbc-tune-") as folder:
        path = Path(folder) / "kernel.so"
        module.export_library(str(path))
        return path.read_bytes()
