"""A candidate's code: compiled where joblib puts it, handed back as what a machine loads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lbcompiler.errors import last_line

Kernel = Any  # of a linear, of a folder of targets/
Config = Any  # the kernel's own
Code = Any  # what a machine loads
Built = Code | str  # or why there is none
Compile = Callable[[Mapping[str, Any]], Code]  # of PrimFuncs by name; it goes to other processes


def build_all(
    compiled: Compile, kernel: Kernel, n: int, k: int, configs: Sequence[Config], jobs: int
) -> list[Built]:
    """The code of `gemm` with each config, `jobs` at a time."""
    from joblib import Parallel, delayed

    built: list[Built] = Parallel(n_jobs=min(jobs, len(configs)))(
        delayed(_build)(compiled, kernel, n, k, config) for config in configs
    )
    return built


def _build(compiled: Compile, kernel: Kernel, n: int, k: int, config: Config) -> Built:
    try:
        return compiled({"gemm": kernel.gemm(n, k, bias=False, config=config)})
    except Exception as error:  # of the generator, of TVM, of the linker: a candidate that fails
        return f"{type(error).__name__}: {last_line(error)}"
