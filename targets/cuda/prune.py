"""How large the folder of compiled kernels may grow: the least recently used entries go first.

`$LBC_CUDA_CACHE_MIB` says it (0 keeps none), else it is `DEFAULT_MIB`. An entry's time of
modification is when it was last read or written. Other processes may read, write and prune at the
same time: who has opened an entry keeps what it reads, who comes too late compiles it again.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from lbcompiler.errors import ConfigError

VARIABLE = "LBC_CUDA_CACHE_MIB"
DEFAULT_MIB = 1024  # some fifty thousand kernels
SUFFIX = ".cubin"
ABANDONED_S = 3600  # a half-written file that old belongs to a process that was killed


def limit_bytes() -> int:
    """Raises ConfigError for what is no number of MiB."""
    said = os.environ.get(VARIABLE, "")
    if not said:
        return DEFAULT_MIB << 20
    try:
        limit = float(said)
        if not 0 <= limit < float("inf"):
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{VARIABLE} is {said!r}: say how many MiB compiled CUDA kernels may take on disk, "
            f"such as {VARIABLE}={DEFAULT_MIB}; 0 keeps none"
        ) from None
    return int(limit * (1 << 20))


def touch(path: Path) -> None:
    """An entry is used now; a folder that is only readable stays as it is."""
    with suppress(OSError):
        os.utime(path)


def prune(folder: Path, limit: int) -> None:
    """Remove entries, those first that were used longest ago, until the rest takes at most `limit`
    bytes. What cannot be removed costs space, nothing else.
    """
    entries: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            with suppress(OSError):  # another process has removed it
                held = path.stat()
                if path.suffix == SUFFIX and not path.name.startswith("."):
                    entries.append((held.st_mtime, held.st_size, path))
                elif time.time() - held.st_mtime > ABANDONED_S:
                    path.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit:
            return
        with suppress(OSError):
            path.unlink(missing_ok=True)
        total -= size
