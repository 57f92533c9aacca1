"""Files and folders that appear whole or not at all."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_unfinished: set[Path] = set()
_asking = threading.Lock()


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Something half-written for the length of the block: what a process that must end removes."""
    _unfinished.add(path)
    try:
        yield path
    finally:
        _unfinished.discard(path)


def remove_unfinished() -> None:
    """Remove everything half-written; another thread may be at it as well."""
    for path in list(_unfinished):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where lbcompiler keeps what can be made again (XDG)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lbcompiler"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the length of the block."""
    with tempfile.TemporaryDirectory(prefix="lbc-") as folder, unfinished(Path(folder)) as path:
        yield path


@contextmanager
def appearing(path: str | Path) -> Iterator[Path]:
    """A file to write that becomes `path` (replacing what is there) when the block ends well."""
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    with unfinished(Path(name)) as partial:
        try:
            yield partial
            partial.chmod(0o666 & ~umask())  # mkstemp's files are for their owner alone
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def umask() -> int:
    """The permissions that this process withholds from new files. They can only be read by setting
    others: no two threads may do so at once.
    """
    with _asking:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask
