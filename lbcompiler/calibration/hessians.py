"""The Hessians of all groups: in memory, or in one file that is mapped where they would take more
than a share of the memory that is there.

    NAME.hessians     float32, the K x K of one group after the other

They are read and added to in one way, and are the same bits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from lbcompiler.calibration.segments import Group
from lbcompiler.errors import ConfigError
from lbcompiler.ir.model import Array

SHARE = 0.25  # the rest is for the model, what it computes, and workers with a Hessian each
FLOAT_BYTES = 4
GIBIBYTE = 2.0**30


def fit_in_memory(groups: Sequence[Group]) -> bool:
    available = int(psutil.virtual_memory().available)
    return _bytes(groups) <= SHARE * available


def made(path: Path, groups: Sequence[Group]) -> dict[str, Array]:
    """Zeros, by the group's name, in a new file. Raises ConfigError where the disk has no room."""
    size = _bytes(groups)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a map of a hole would end in SIGBUS
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ConfigError(
            f"the Hessians of the layers' inputs take {size / GIBIBYTE:.3g} GiB, for which there "
            f"is not enough memory, and {path.parent} cannot hold them ({error.strerror}): name a "
            "folder on a larger disk with --state, or choose quantizer rtn, which needs none"
        ) from None
    return mapped(path, groups, "r+")


def mapped(path: Path, groups: Sequence[Group], mode: Literal["r", "r+"]) -> dict[str, Array]:
    """Those of a file, by the group's name. Raises ValueError for one of another size."""
    if path.stat().st_size != _bytes(groups):
        raise ValueError(f"{path} has {path.stat().st_size} bytes, not {_bytes(groups)}")
    flat = np.asarray(np.memmap(path, np.float32, mode))  # one map: each takes a file descriptor
    ends = np.cumsum([group.k**2 for group in groups])[:-1]
    parts = zip(groups, np.split(flat, ends), strict=True)
    return {group.name: part.reshape(group.k, group.k) for group, part in parts}


def _bytes(groups: Sequence[Group]) -> int:
    return sum(FLOAT_BYTES * group.k**2 for group in groups)
