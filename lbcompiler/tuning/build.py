"""A candidate's code: compiled where joblib puts it, handed back as the bytes of a library."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tvm

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.build import tir_pipeline
from lbcompiler.targets.cpu.gemm import Config
from lbcompiler.targets.cpu.isa import isa_named
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for

Built = bytes | str  # the library, or why there is none
Names = tuple[str | None, str | None, str]  # weight and activation format, instruction set


def build_all(
    kernel: LinearKernel, n: int, k: int, configs: Sequence[Config], jobs: int
) -> list[Built]:
    """One library with `gemm` for each config, `jobs` at a time."""
    from joblib import Parallel, delayed

    weight = None if kernel.weight is None else kernel.weight.name
    act = None if kernel.act is None else kernel.act.name
    names: Names = (weight, act, kernel.isa.name)
    built: list[Built] = Parallel(n_jobs=min(jobs, len(configs)))(
        delayed(_build)(names, n, k, config) for config in configs
    )
    return built


def _build(names: Names, n: int, k: int, config: Config) -> Built:
    """Takes names, not a kernel: they cross to another process, tables of functions do not."""
    weight, act, isa = names
    kernel = kernel_for(_format(weight), _format(act), isa_named(isa))
    try:
        return library(kernel, gemm=kernel.gemm(n, k, bias=False, config=config))
    except Exception as error:  # of the generator, of TVM, of the linker: a candidate that fails
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"


def _format(name: str | None) -> Any:
    return None if name is None else FORMATS[name]


def library(kernel: LinearKernel, **functions: Any) -> bytes:
    """Compiled and linked for the kernel's instruction set."""
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    target = kernel.isa.tvm_target()
    module = tvm.compile(tvm.IRModule(named), target=target, tir_pipeline=tir_pipeline())
    with tempfile.TemporaryDirectory(prefix="lbc-tune-") as folder:
        path = Path(folder) / "kernel.so"
        module.export_library(str(path))
        return path.read_bytes()
