"""What a target is: the kernels it has, the passes it adds, and how it turns a module into code."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbcompiler.formats import BlockFormat
from lbcompiler.ir.dump import Dump
from lbcompiler.ir.model import Dim
from lbcompiler.pipeline import Pass

Supports = Callable[[BlockFormat, BlockFormat | None], str]


@dataclass(frozen=True)
class KernelUse:
    """What a kernel of a GPU takes: `registers` of a thread, `shared_bytes` of a block, bytes that
    a thread spills to memory; `occupancy`: the share of a multiprocessor's warps that can be there.
    """

    name: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int
    occupancy: float


@dataclass(frozen=True)
class Files:
    """Where a target's code goes: the library that is loaded, what a device runs, and, if it is to
    be kept, a folder for the text that was compiled.
    """

    library: Path
    device: Path
    source: Path | None = None


Build = Callable[
    [Any, Sequence[Dim], Files, Dump], Sequence[KernelUse]
]  # (module, dynamic dimensions, files to write, what to call after every stage) -> GPU kernels


@dataclass(frozen=True)
class Target:
    """`supports(weight format, activation format)` gives the reason of a refusal, or "" for a
    kernel.

    `activation_rules` are the scale rules that it quantizes activations by when the code runs,
    `largest_rotation` the size of the largest that it does there, None where there is no bound.
    `passes` run behind the target-independent ones and leave a module that `build` can write as a
    library; `check` raises ConfigError where that cannot be done on this machine."""

    name: str
    isa: str
    supports: Supports
    passes: tuple[Pass, ...]
    build: Build
    check: Callable[[], object] = lambda: None
    activation_rules: frozenset[str] = frozenset({"floor", "rceil", "even", "absmax"})
    largest_rotation: int | None = None
