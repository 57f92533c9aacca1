"""What a program needs of the machine it runs on: a driver, a GPU of its architecture, and TVM's
CUDA runtime.
"""

import ctypes
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import tvm

from lbcompiler.errors import ConfigError, DeviceError
from lbcompiler.targets.cuda.arch import Arch, arch_named, archs_named, best_for
from lbcompiler.targets.cuda.driver import Gpu, NoGpuError, first_gpu
from lbcompiler.targets.cuda.toolchain import pip_folders

RUNTIME = "libcudart.so.13"  # what TVM's CUDA runtime is linked to
RELEASE = (13, 0)  # of the driver that this asks for
TOOLKITS = ("/usr/local/cuda/lib64",)


def program_for(isas: Sequence[str], artifact: str) -> str:
    """Of an artifact's architectures the one that suits the first GPU, ready to be loaded.

    Raises DeviceError: no driver, one too old, a GPU that none of them is for, no CUDA runtime.
    """
    try:
        gpu = first_gpu()
    except NoGpuError as error:
        raise DeviceError(
            f"{artifact} is for NVIDIA GPUs ({', '.join(isas)}), and {error}; compile with "
            "--target cpu to run on the processor"
        ) from None
    arch = best_for(gpu.capability, tuple(arch_named(isa) for isa in isas))
    if arch is None:
        capability = ".".join(map(str, gpu.capability))
        best = best_for(gpu.capability)
        wanted = "no architecture there are kernels for" if best is None else f"cuda:{best.name}"
        raise DeviceError(
            f"{artifact} was compiled for {', '.join(isas)}, and {gpu.name} has compute capability "
            f"{capability}: compile it with --target {wanted}"
        )
    _load_runtime(gpu)
    return arch.name


def gpu_for(variant: str, purpose: str, threads: int | None = None) -> tuple[Arch, Gpu]:
    """The first GPU, ready for kernels to be loaded, and the architecture to compile for: `variant`
    names it, "" is the one that suits. `threads`: what was asked for, which has to be nothing.

    Raises ConfigError, which says that `purpose` ("lbc tune measures") needs a GPU, and DeviceError
    where it cannot be used.
    """
    if threads is not None:
        raise ConfigError("--threads is for target cpu: a GPU runs all that it has")
    try:
        gpu = first_gpu()
    except NoGpuError as error:
        raise ConfigError(
            f"{purpose} kernels of target cuda on a GPU, and {error}: run it on a machine that has "
            "one, or say --target cpu"
        ) from None
    arch = best_for(gpu.capability)
    capability = ".".join(map(str, gpu.capability))
    if arch is None:
        raise ConfigError(
            f"{gpu.name} has compute capability {capability}, which there are no kernels for"
        )
    if variant:
        arch, *others = archs_named(variant)
        if others:
            raise ConfigError(f"{purpose} one architecture at a time, not {variant}")
        if not arch.runs_on(gpu.capability):
            raise ConfigError(
                f"{gpu.name} has compute capability {capability} and cannot run {arch.name} code: "
                "say --target cuda, which takes what suits it"
            )
    _load_runtime(gpu)
    return arch, gpu


def _load_runtime(gpu: Gpu) -> None:
    if gpu.cuda < RELEASE:
        raise DeviceError(
            f"the NVIDIA driver is made for CUDA {gpu.cuda[0]}.{gpu.cuda[1]}, and TVM's runtime "
            f"needs one for CUDA {RELEASE[0]}.{RELEASE[1]} or later: update the driver"
        )
    if _has_runtime():
        return
    folders = [*(found / "lib" for found in pip_folders()), *map(Path, TOOLKITS)]
    for place in (RUNTIME, *(str(folder / RUNTIME) for folder in folders)):  # the system's first
        with suppress(OSError):
            ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
            break
    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise DeviceError(
            f"TVM's CUDA runtime cannot be loaded ({error}): pip install 'lbcompiler[cuda]' brings "
            f"{RUNTIME}"
        ) from None


def _has_runtime() -> bool:
    return tvm.get_global_func("device_api.cuda", allow_missing=True) is not None
