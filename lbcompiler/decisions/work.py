"""How the measuring is gone about: what does not change the result."""

from dataclasses import dataclass
from pathlib import Path

from lbcompiler.decisions.jobs import BACKENDS
from lbcompiler.errors import ConfigError


@dataclass(frozen=True)
class Work:
    """state: a folder that measurements are kept in, None for none that lasts. jobs: how many
    groups of layers are quantized at a time, None for one a core. backend: where; a cluster's is
    found or started as decisions/jobs.py says.
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
