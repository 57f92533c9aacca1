"""What a target brings to tuning: its kernels, the machine that runs them, how they are timed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from lbcompiler.errors import ConfigError
from lbcompiler.targets import targets_named
from lbcompiler.targets.configs import Tuned, shipped
from lbcompiler.tuning.machine import Machine, open_machine
from lbcompiler.tuning.measure import Bench, GemmBench
from lbcompiler.tuning.work import KernelFor, Work


@dataclass(frozen=True)
class TuningTarget:
    """`isa`: the name of the instruction set or architecture; `tuned`: what a compile takes without
    a database.
    """

    machine: Machine
    isa: str
    kernel_for: KernelFor
    tuned: Tuned
    make_bench: Callable[[Work, Machine, int], Bench]


@contextmanager
def open_target(target: str, threads: int | None, rpc: str | None) -> Iterator[TuningTarget]:
    """`cpu`, `cpu:ISA`, `cuda` or `cuda:ARCH`. Raises ConfigError, DeviceError."""
    name, _, variant = target.partition(":")
    if name == "cpu":
        with _cpu(variant, threads, rpc) as held:
            yield held
    elif name == "cuda":
        yield _gpu(variant, threads, rpc)
    else:
        targets_named(target)  # refuses it


@contextmanager
def _cpu(variant: str, threads: int | None, rpc: str | None) -> Iterator[TuningTarget]:
    from lbcompiler.targets.cpu import tuned_for
    from lbcompiler.targets.cpu.kernels import kernel_for

    isa, tuned = tuned_for(variant)
    with open_machine(rpc, isa, threads) as machine:
        if rpc is not None:  # what a compile takes on that machine
            tuned = Tuned(shipped("cpu", [machine.processor, isa.name]))
        kernels = partial(kernel_for, isa=isa)
        yield TuningTarget(machine, isa.name, kernels, tuned, GemmBench)


def _gpu(variant: str, threads: int | None, rpc: str | None) -> TuningTarget:
    from lbcompiler.targets.cuda import tuned_for
    from lbcompiler.targets.cuda.clock import Clock
    from lbcompiler.targets.cuda.linears import linear_for
    from lbcompiler.targets.cuda.machine import gpu_for
    from lbcompiler.targets.cuda.toolchain import find_nvcc
    from lbcompiler.tuning.measure_gpu import GpuBench

    if rpc is not None:
        raise ConfigError("--rpc is for target cpu: call lbc tune on the machine that has the GPU")
    if threads is not None:
        raise ConfigError("--threads is for target cpu: a GPU runs all that it has")
    arch, gpu = gpu_for(variant, "lbc tune measures")
    find_nvcc().check(arch)
    clock = Clock()
    machine = Machine(gpu.name, clock.device, lambda code: code.load())
    kernels = partial(linear_for, arch=arch)
    tuned = tuned_for(arch, gpu.name if not variant else "")
    return TuningTarget(machine, arch.name, kernels, tuned, partial(GpuBench, clock))
