"""What a target brings to tuning: its kernels, the machine that runs them, how they are timed."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lbcompiler.targets import parts_of, side_of
from lbcompiler.targets.configs import Tuned
from lbcompiler.tuning.machine import Machine
from lbcompiler.tuning.measure import Bench
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


def machines_here(target: str) -> set[str]:
    """What results of a target that were measured on this machine name as theirs: its processor or
    GPU.
    """
    name, _ = parts_of(target)
    found: set[str] = side_of(__package__, name).machines_here()
    return found


Open = Callable[[str, int | None, str | None], AbstractContextManager[TuningTarget]]


def open_target(
    target: str, threads: int | None, rpc: str | None
) -> AbstractContextManager[TuningTarget]:
    """`cpu`, `cpu:ISA`, `cuda` or `cuda:ARCH`, by `open_target` of `on_NAME.py`. Raises
    ConfigError, DeviceError.
    """
    name, variant = parts_of(target)
    opened: Open = side_of(__package__, name).open_target
    return opened(variant, threads, rpc)
