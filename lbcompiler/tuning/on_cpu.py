"""Target cpu in `lbc tune`: see `TuningTarget`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from lbcompiler.targets.configs import Tuned, shipped
from lbcompiler.targets.cpu import tables_of, tuned_for
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.processor import processor
from lbcompiler.tuning.machine import open_machine
from lbcompiler.tuning.measure import GemmBench
from lbcompiler.tuning.targets import TuningTarget


def machines_here() -> set[str]:
    """What results that were measured on this machine name as theirs."""
    return {processor()}


@contextmanager
def open_target(variant: str, threads: int | None, rpc: str | None) -> Iterator[TuningTarget]:
    isa, tuned = tuned_for(variant)
    with open_machine(rpc, isa, threads) as machine:
        if rpc is not None:  # what a compile takes on that machine
            tuned = Tuned(shipped("cpu", [machine.processor, *tables_of(isa)]))
        kernels = partial(kernel_for, isa=isa)
        yield TuningTarget(machine, isa.name, kernels, tuned, GemmBench)
