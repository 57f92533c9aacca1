"""Where trials are kept: an Optuna storage, by default one sqlite file of the user's.

Every study says what it is about in one attribute: kernel (with its formats and instruction set),
shape, processor, versions. Studies of others that live in the same database are left alone.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcompiler.config import masked
from lbcompiler.errors import ConfigError
from lbcompiler.files import cache_folder
from lbcompiler.targets.configs import Shape

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

ATTRIBUTE = "lbcompiler"
PATIENCE_S = 10  # for another process to let go of a sqlite file
PACKAGES = ("lbcompiler", "apache-tvm")  # that generate the code


@dataclass(frozen=True)
class Subject:
    """What a study is about."""

    kernel: str  # its name says the formats
    isa: str
    shape: Shape
    processor: str
    versions: Mapping[str, str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "Subject | None":
        """None for a study that is not ours."""
        try:
            held = json.loads(attributes[ATTRIBUTE])
            m, k, n = map(int, held.pop("shape"))
            return cls(shape=(m, k, n), **held)
        except (KeyError, TypeError, ValueError):
            return None


def versions() -> dict[str, str]:
    """Of what generates the code: results of others are not used."""
    return {name: version(name) for name in PACKAGES}


def default_path() -> Path:
    """`tuning.db` in the user's cache folder."""
    return cache_folder() / "tuning.db"


def open_database(database: str | Path | None, must_exist: bool = False) -> "BaseStorage":
    """The storage at a URL or a sqlite file's path. Raises ConfigError."""
    try:
        from optuna.storages import RDBStorage
    except ImportError:
        raise ConfigError(
            "tuning databases need optuna, which is not installed: pip install 'lbcompiler[tune]'"
        ) from None
    name = url = str(default_path() if database is None else database)
    options: dict[str, Any] = {}
    if "://" not in url:
        path = Path(url)
        if must_exist and not path.is_file():
            raise ConfigError(f"there is no tuning database {path}: lbc tune --db {path} makes one")
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{path.absolute()}"
    if url.startswith("sqlite:"):
        options = {"connect_args": {"timeout": PATIENCE_S}}
    with readable(name):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (ImportError, RuntimeError) as error:  # no driver; a schema of another optuna
            raise ConfigError(f"the tuning database {masked(name)} {_reason(error)}") from None


@contextmanager
def readable(database: str | Path | None) -> Iterator[None]:
    """Turns what a database refuses into a ConfigError that says what to do."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    name = masked(str(default_path() if database is None else database))
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise ConfigError(f"the tuning database {name} {_reason(error)}") from None


def _reason(error: Exception) -> str:
    said = masked(str(error.__cause__ or getattr(error, "orig", None) or error))
    if "locked" in said:
        return (
            f"is locked by another process for longer than {PATIENCE_S} s: end that, or name "
            "another database with --db"
        )
    if "not a database" in said or "malformed" in said:
        return f"is damaged ({said}): move it away to begin a new one, or name another database"
    if isinstance(error, ImportError):
        return f"needs a driver that is not installed ({said})"
    if "no longer compatible" in said or "version" in said:
        return f"was written by another version of optuna ({said})"
    return f"cannot be used: {said}"
