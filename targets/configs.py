"""Which config a linear's kernel gets: the nearest result of `lbc tune`, else the kernel's default.

A kernel holds several programs, for one row, for few and for many (its `programs` says which), and
results are kept for each by itself. There a result serves the shapes of its class:

    shape class = the program; K and N each rounded to the nearest power of two

Results come in tables, those to be preferred first: what the user names (`--tuning-db`), then what
is shipped in the target's `tuned/` for this processor or GPU (`znver5.json`), then for its
instruction set or architecture (`avx2.json`, `sm_90a.json`). A result that is no choice of the
kernel's space for the shape at hand is passed over.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from math import log2
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from lbcompiler.errors import ConfigError

DEFAULT = "default"
TABLE_VERSION = 1

Shape = tuple[int, int, int]  # M, K, N


@dataclass(frozen=True)
class Program:
    """A part of a kernel, for up to `most` rows (None: any); `rows` stand for M where it is not
    known.
    """

    name: str
    most: int | None
    rows: int


class Tunable(Protocol):
    """A kernel, as far as its config is concerned: a frozen dataclass."""

    def tuned_as(self, m: int) -> str:
        """The name of the kernel whose results for M rows are its own: that of the same code."""

    def programs(self, n: int, k: int) -> Sequence[Program]:
        """In the order of their rows."""

    def default_config(self, n: int, k: int) -> Any: ...

    def space(self, m: int, n: int, k: int) -> Mapping[str, Sequence[int]]:
        """The fields of the config that matter for M rows, with the values worth trying."""


def shape_class(kernel: Tunable, shape: Shape) -> tuple[str, int, int]:
    """(program, K and N as exponents of two): shapes that share a result."""
    m, k, n = shape
    programs = kernel.programs(n, k)
    program = next(p for p in programs if p.most is None or m <= p.most)
    return program.name, round(log2(k)), round(log2(n))


class Result(BaseModel):
    """The fastest config of a kernel at a shape, in milliseconds beside the default's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernel: str
    shape: Shape
    config: dict[str, int]  # the fields of the kernel's space that matter for this M
    ms: float
    default_ms: float


class Table(BaseModel):
    """Results as a file: what `lbc tune --export` writes and `tuned/*.json` are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table_version: int = TABLE_VERSION
    processor: str  # that they were measured on
    versions: dict[str, str]  # of the packages that generated the code
    results: tuple[Result, ...]

    def to_text(self) -> str:
        """JSON with a line for each result."""
        head = json.dumps(self.model_dump(mode="json", exclude={"results"}), indent=2)
        lines = (result.model_dump_json() for result in self.results)
        body = ",".join(f"\n    {line}" for line in lines)
        return f'{head[:-2]},\n  "results": [{body}\n  ]\n}}\n'


@dataclass(frozen=True)
class Source:
    """Results and where they come from, for the manifest."""

    name: str
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Chosen:
    """A kernel's config, and the names of the tables it comes from: `default` where none had it."""

    config: Any
    source: str


@dataclass(frozen=True)
class Tuned:
    """`sources`, those to be preferred first."""

    sources: tuple[Source, ...] = ()

    def choose(self, kernel: Tunable, n: int, k: int) -> Chosen:
        """For y (M, n) of x (M, k), any M."""
        config, names = kernel.default_config(n, k), []
        for program in kernel.programs(n, k):
            source, result = self._nearest(kernel, (program.rows, k, n))
            if result is not None:
                config = replace(config, **result.config)
                names.append(source)
        return Chosen(config, " + ".join(dict.fromkeys(names)) or DEFAULT)

    def _nearest(self, kernel: Tunable, shape: Shape) -> tuple[str, Result | None]:
        m, k, n = shape
        for source in self.sources:
            near = [
                result
                for result in source.results
                if result.kernel == kernel.tuned_as(m)
                and shape_class(kernel, result.shape) == shape_class(kernel, shape)
            ]
            if not near:
                continue
            space = kernel.space(m, n, k)
            fitting = [r for r in near if all(v in space.get(f, ()) for f, v in r.config.items())]
            if fitting:
                return source.name, min(fitting, key=lambda r: _distance(r.shape, shape))
        return DEFAULT, None


def _distance(a: Shape, b: Shape) -> tuple[float, float]:
    """In octaves: K and N first, because they are known, then M."""
    octaves = [abs(log2(x / y)) for x, y in zip(a, b, strict=True)]
    return octaves[1] + octaves[2], octaves[0]


def shipped(target: str, names: Iterable[str]) -> tuple[Source, ...]:
    """The tables in the `tuned/` of a target that there are for these processors and instruction
    sets.
    """
    folder = files(f"lbcompiler.targets.{target}") / "tuned"
    found = [(name, folder / f"{name}.json") for name in names]
    return tuple(
        Source(name, Table.model_validate_json(path.read_text()).results)
        for name, path in found
        if path.is_file()
    )


def read_table(path: Path) -> Table:
    """A table that `lbc tune --export` wrote. Raises ConfigError."""
    try:
        table = Table.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"cannot read the tuning table {path} ({reason}): write it again with lbc tune --export"
        ) from None
    if table.table_version != TABLE_VERSION:
        raise ConfigError(
            f"the tuning table {path} has version {table.table_version}, this lbcompiler reads "
            f"{TABLE_VERSION}: write it again with lbc tune --export"
        )
    return table


def fields_of(config: Any) -> dict[str, int]:
    """For the manifest."""
    held: dict[str, Any] = asdict(config)
    return held
