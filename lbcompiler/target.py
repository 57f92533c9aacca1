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
Build = Callable[
    [Any, Sequence[Dim], Path, Dump], None
]  # (module, dynamic dimensions, shared library to write, what to call after every stage)


@dataclass(frozen=True)
class Target:
    """`supports(weight format, activation format)` gives the reason of a refusal, or "" for a
    kernel.

    `passes` run behind the target-independent ones and leave a module that `build` can write as a
    library."""

    name: str
    isa: str
    supports: Supports
    passes: tuple[Pass, ...]
    build: Build
