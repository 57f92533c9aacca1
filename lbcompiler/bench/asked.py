"""What `lbc bench` is asked for, from the words of its command line. Raises ConfigError."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lbcompiler.bench.gemm import GemmRow
from lbcompiler.bench.model import ModelSpeed, bench_model
from lbcompiler.bench.targets import Settings, bench_gemm
from lbcompiler.bench.timing import ROUNDS, Progress
from lbcompiler.config import make_config, parse_inputs, parse_shape
from lbcompiler.errors import ConfigError, LbcWarning
from lbcompiler.targets import parts_of
from lbcompiler.targets.configs import Source
from lbcompiler.tuning.work import parse_shape as parse_linear

FORMAT = "mxint8"
SHAPES = ("128x4096x4096", "1x4096x4096")


def refuse(options: Mapping[str, Any], form: str) -> None:
    """Options of the other form of the verb."""
    for name, value in options.items():
        if value:
            raise ConfigError(f"--{name.replace('_', '-')} is for `{form}`: leave it out here")


def gemm(
    format: str | None,
    act_format: str | None,
    shape: Sequence[str],
    target: str | None,
    tuning_db: str | None,
    hot: bool,
    peers: str | None,
    threads: int | None,
    rounds: int | None,
    progress: Progress,
) -> list[GemmRow]:
    """`lbc bench gemm`."""
    configs = [
        make_config({"format": name, "act_format": act_format, "target": target or "cpu"})
        for name in _listed(format or FORMAT)
    ]
    name, variant = parts_of(configs[0].target)
    settings = Settings(
        variant=variant,
        results=_results(tuning_db, name),
        threads=threads,
        peer_names=None if peers is None else _listed(peers),
        rounds=rounds or ROUNDS,
        hot=hot,
    )
    return bench_gemm(
        name,
        [(config.weight_format, config.activation_format) for config in configs],
        [parse_linear(text) for item in shape or SHAPES for text in item.split(",")],
        settings,
        progress,
    )


def model(
    path: str,
    against: Path | None,
    input: Sequence[str] | None,
    profile: bool,
    peers: str | None,
    threads: int | None,
    rounds: int | None,
    progress: Progress,
) -> ModelSpeed:
    """`lbc bench OUT.lbc`."""
    shapes = {name: _sizes(name, shape) for name, shape in parse_inputs(input or ()).items()}
    return bench_model(
        path,
        against,
        shapes=shapes,
        peer_names=None if peers is None else _listed(peers),
        threads=threads,
        rounds=rounds or ROUNDS,
        with_profile=profile,
        progress=progress,
    )


def _results(tuning_db: str | None, target: str) -> Sequence[Source]:
    if tuning_db is None:
        return ()
    from lbcompiler.tuning.results import read_results  # needs packages that only tuning needs

    found = read_results(tuning_db, target)
    if found.other_versions:
        said = f"{found.other_versions} results of other versions in {found.name}: not used"
        warnings.warn(said, LbcWarning, stacklevel=2)
    return found.sources


def _listed(text: str) -> list[str]:
    return [name for name in (part.strip() for part in text.split(",")) if name]


def _sizes(name: str, shape: str) -> list[int]:
    sizes = [dim for dim in parse_shape(shape) if isinstance(dim, int)]
    if len(sizes) != len(parse_shape(shape)):
        raise ConfigError(f"--input {name}:{shape} has to give every size, e.g. {name}:8x128")
    return sizes
