"""Target cuda in `lbc tune`: see `TuningTarget`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cuda import tuned_for
from lbcompiler.targets.cuda.clock import Clock
from lbcompiler.targets.cuda.driver import NoGpuError, first_gpu
from lbcompiler.targets.cuda.library import Library
from lbcompiler.targets.cuda.linears import linear_for
from lbcompiler.targets.cuda.machine import gpu_for
from lbcompiler.targets.cuda.toolchain import find_nvcc
from lbcompiler.tuning.machine import Machine
from lbcompiler.tuning.measure_gpu import GpuBench
from lbcompiler.tuning.targets import TuningTarget


def machines_here() -> set[str]:
    """What results that were measured on this machine name as theirs."""
    try:
        return {first_gpu().name}
    except NoGpuError:
        return set()


@contextmanager
def open_target(variant: str, threads: int | None, rpc: str | None) -> Iterator[TuningTarget]:
    if rpc is not None:
        raise ConfigError("--rpc is for target cpu: call lbc tune on the machine that has the GPU")
    arch, gpu = gpu_for(variant, "lbc tune measures", threads)
    find_nvcc().check(arch)
    clock = Clock()
    machine = Machine(gpu.name, clock.device, partial(Library.of, arch=arch), Library.load)
    kernels = partial(linear_for, arch=arch)
    tuned = tuned_for(arch, gpu.name if not variant else "")
    yield TuningTarget(machine, arch.name, kernels, tuned, partial(GpuBench, clock))
