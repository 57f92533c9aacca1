"""Compiled code by the hash of what it is made from, in the user's cache folder.

A kernel takes a tenth of a second to half a second and more to compile; a model's second
compilation, and every model with the same layers, takes none of it. An entry is one file that
appears whole, and says the hash of what it holds: a damaged one is compiled again. Other processes
may read, write and prune at the same time: who has opened an entry keeps what it reads, who comes
too late compiles it again.

A folder is kept to a size: the least recently used entries go first. `$LBC_CUDA_CACHE_MIB` and
`$LBC_CPU_CACHE_MIB` say it (0: nothing is read nor kept), else it is `DEFAULT_MIB`. An entry's time
of modification is when it was last read or written.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lbcompiler.errors import ConfigError
from lbcompiler.files import appearing, cache_folder

DEFAULT_MIB = 1024  # some thirty thousand kernels
ABANDONED_S = 3600  # a half-written file that old belongs to a process that was killed


@dataclass(frozen=True)
class Entry:
    """Code, and what is to be known of it, as JSON has it."""

    code: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The hash of both."""
        facts = json.dumps(dict(self.facts), sort_keys=True).encode()
        return hashlib.sha256(facts + b"\n" + self.code).hexdigest()


@dataclass(frozen=True)
class CodeCache:
    """The entries of one kind of target (`cpu`, `cuda`)."""

    name: str
    suffix: str

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return cache_folder() / self.name

    @property
    def variable(self) -> str:
        """The environment's word on how large the folder may grow."""
        return f"LBC_{self.name.upper()}_CACHE_MIB"

    def limit_bytes(self) -> int:
        """Raises ConfigError for what is no number of MiB."""
        said = os.environ.get(self.variable, "")
        if not said:
            return DEFAULT_MIB << 20
        try:
            limit = float(said)
            if not 0 <= limit < float("inf"):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"{self.variable} is {said!r}: say how many MiB compiled kernels may take on disk, "
                f"such as {self.variable}={DEFAULT_MIB}; 0 keeps none"
            ) from None
        return int(limit * (1 << 20))

    def path_of(self, parts: Sequence[str]) -> Path:
        """Where the entry of what `parts` describe is, if there is one."""
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.folder / f"{key}{self.suffix}"

    def held(self, parts: Sequence[str], make: Callable[[], Entry]) -> Entry:
        """The entry of what `parts` describe, or what `make` makes. A cache that cannot be written
        costs time, nothing else. Raises ConfigError for a limit that is none.
        """
        if not self.limit_bytes():
            return make()
        path = self.path_of(parts)
        found = _read(path)
        if found is not None:
            with suppress(OSError):  # a folder that is only readable stays as it is
                os.utime(path)
            return found
        entry = make()
        head = {"sha256": entry.digest, "facts": dict(entry.facts)}
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with appearing(path) as partial:
                partial.write_bytes(json.dumps(head).encode() + b"\n" + entry.code)
        return entry

    def prune(self) -> None:
        """Remove entries, those first that were used longest ago, until the rest keeps to the
        limit. What cannot be removed costs space, nothing else.
        """
        limit = self.limit_bytes()
        entries: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                with suppress(OSError):  # another process has removed it
                    status = path.stat()
                    if path.suffix == self.suffix and not path.name.startswith("."):
                        entries.append((status.st_mtime, status.st_size, path))
                    elif time.time() - status.st_mtime > ABANDONED_S:
                        path.unlink()
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= limit:
                return
            with suppress(OSError):
                path.unlink(missing_ok=True)
            total -= size


def _read(path: Path) -> Entry | None:
    """An entry, None where there is none or it is damaged."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        known = json.loads(head)
        entry = Entry(code, known["facts"])
        return entry if entry.digest == known["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
