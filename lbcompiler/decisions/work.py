"""How the measuring is gone about: what does not change the result."""

import os
from dataclasses import dataclass
from pathlib import Path

from lbcompiler.errors import ConfigError

BACKENDS = ("loky", "ray", "dask")


@dataclass(frozen=True)
class Work:
    """state: a folder that measurements are kept in, None for none that lasts. jobs: processes
    that quantize groups of layers, None for one a usable core. backend: of joblib; ray and dask
    run them on the cluster that the process is connected to.
    """

    state: Path | None = None
    jobs: int | None = None
    backend: str = "loky"

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ConfigError(
                f"no jobs run on {self.backend!r}: choose one of {', '.join(BACKENDS)}"
            )
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f"the number of jobs is {self.jobs}; it must be 1 or more")

    @property
    def processes(self) -> int:
        return self.jobs or len(os.sched_getaffinity(0))
