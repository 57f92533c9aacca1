"""What a check is: built on the processor's cores, run on the GPU, told as a record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from lbcompiler.targets.cuda.arch import Arch, arch_named

Array = NDArray[Any]
Arrays = dict[str, Array]
Figures = dict[str, Any]

PASSED, FAILED, MEASURED, SKIPPED, CRASHED = "passed", "failed", "measured", "skipped", "crashed"


class WrongError(Exception):
    """What a GPU computed is not what it must be."""


class MissingError(Exception):
    """Something that a check needs is not on this machine."""


class OfArch:
    """A dataclass whose field `arch_name` says what it is compiled for."""

    arch_name: str

    @property
    def arch(self) -> Arch:
        return arch_named(self.arch_name)


class Check(Protocol):
    @property
    def name(self) -> str:
        """Says kernel, formats and architecture."""

    def build(self, folder: Path) -> None:
        """Compile what runs, into a folder of its own; without a GPU."""

    def run(self, folder: Path) -> Figures:
        """On the GPU. Raises WrongError, MissingError."""


def library_of(check: Check) -> str:
    """Checks of one library share what is built."""
    return str(getattr(check, "library", check.name))


def family_of(check: Check) -> str:
    """Checks of one family launch the same code: where it hangs for one, it does for the others."""
    held = getattr(check, "of", check)
    return str(getattr(held, "family", type(held).__name__))


@dataclass(frozen=True)
class Record:
    """What became of a check. `figures` of one that passed: how near it came to its bounds, or what
    was measured.
    """

    name: str
    status: str
    seconds: float = 0.0
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
