"""What this machine has of what the checks use, and what is missing, with what that costs."""

import os
import platform
import shutil
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from lbcompiler.bench.cublas import places
from lbcompiler.errors import ConfigError
from lbcompiler.targets.cuda.driver import Gpu, NoGpuError, first_gpu
from lbcompiler.targets.cuda.toolchain import find_nvcc

PACKAGES = ("lbcompiler", "apache-tvm", "numpy", "torch", "nvidia-cublas", "optuna")


@dataclass
class Environment:
    gpu: Gpu | None
    facts: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    can_check: bool = True


def look(is_built: bool = False) -> Environment:
    """`is_built`: nothing has to be compiled here."""
    found = Environment(None)
    try:
        found.gpu = first_gpu()
        found.facts["gpu"] = found.gpu.name
        found.facts["capability"] = ".".join(map(str, found.gpu.capability))
        found.facts["driver_cuda"] = ".".join(map(str, found.gpu.cuda))
    except NoGpuError as error:
        found.missing.append(f"a GPU: {error}; nothing can be checked")
        found.can_check = False
    try:
        nvcc = find_nvcc()
        found.facts["nvcc"] = f"{nvcc.path} {nvcc.version}"
    except ConfigError as error:
        if not is_built:
            found.missing.append(f"nvcc: {error}; nothing can be compiled")
            found.can_check = False
    if shutil.which("g++") is None and not is_built:
        found.missing.append("g++: there is no emulator, and nvcc needs it as well")
    cublas = next((place for place in places() if os.sep in place), None)
    found.facts["cublas"] = cublas or "looked for where the system keeps libraries"
    if cublas is None:
        found.missing.append(
            "cuBLAS in a package or toolkit (pip install nvidia-cublas): unless the system has "
            "one, the rows against bfloat16 have no peer"
        )
    if find_spec("torch") is None:
        found.missing.append("torch with CUDA: no time of its fp8 product")
    found.facts["cores"] = len(os.sched_getaffinity(0))
    found.facts["python"] = platform.python_version()
    found.facts["packages"] = {name: _version(name) for name in PACKAGES}
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
