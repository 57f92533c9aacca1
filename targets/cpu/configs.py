"""Which config a linear's kernel gets: the nearest result of `lbc tune`, else the kernel's default.

A kernel holds three programs, for one row, for few (below `SMALL_M`) and for many, and results are
kept for each by itself. There a result serves the shapes of its class:

    shape class = one, few or many; K and N each rounded to the nearest power of two

Results come in tables, those to be preferred first: what the user names (`--tuning-db`), then what
is shipped in `tuned/` for this processor (`znver5.json`, as LLVM names it), then for its
instruction set (`avx2.json`). A result that is no choice of the kernel's space for the shape at
hand is passed over. What a kernel computes is the same bits whatever the config.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from math import log2
from pathlib import Path
from typing import Any

import tvm
from pydantic import BaseModel, ConfigDict, ValidationError

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cpu.gemm import SMALL_M, Config
from lbcompiler.targets.cpu.kernels import LinearKernel

PROGRAMS = {"one": 1, "few": 8, "many": 128}  # and the rows that stand for M where it is not known
DEFAULT = "default"
TABLE_VERSION = 1

Shape = tuple[int, int, int]  # M, K, N


def shape_class(shape: Shape) -> tuple[str, int, int]:
    """(program, K and N as exponents of two): shapes that share a result."""
    m, k, n = shape
    program = "many" if m >= SMALL_M else "few" if m > 1 else "one"
    return program, round(log2(k)), round(log2(n))


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

    config: Config
    source: str


@dataclass(frozen=True)
class Tuned:
    """`sources`, those to be preferred first."""

    sources: tuple[Source, ...] = ()

    def choose(self, kernel: LinearKernel, n: int, k: int) -> Chosen:
        """For y (M, n) of x (M, k), any M."""
        config, names = kernel.default_config(n, k), []
        for m in PROGRAMS.values():
            source, result = self._nearest(kernel, (m, k, n))
            if result is not None:
                config = replace(config, **result.config)
                names.append(source)
        return Chosen(config, " + ".join(dict.fromkeys(names)) or DEFAULT)

    def _nearest(self, kernel: LinearKernel, shape: Shape) -> tuple[str, Result | None]:
        m, k, n = shape
        for source in self.sources:
            near = [
                result
                for result in source.results
                if result.kernel == kernel.name and shape_class(result.shape) == shape_class(shape)
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


def processor() -> str:
    """LLVM's name of this machine's processor: znver5, sapphirerapids, ..."""
    return str(tvm.get_global_func("target.llvm_get_system_cpu")())


def shipped(names: Iterable[str]) -> tuple[Source, ...]:
    """The tables of `tuned/` that there are for these processors and instruction sets."""
    folder = files("lbcompiler.targets.cpu") / "tuned"
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


def fields_of(config: Config) -> dict[str, int]:
    """For the manifest."""
    held: dict[str, Any] = asdict(config)
    return held
