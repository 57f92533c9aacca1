"""`lbc bench OUT.lbc`: a compiled model beside runtimes of its float source, in turn.

With a profile also every kernel of a run, with its share of what the machine reaches, measured in
the same rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lbcompiler.artifact import open_artifact
from lbcompiler.bench.gemm import CEILING, OURS
from lbcompiler.bench.model_peers import default_names, model_peers
from lbcompiler.bench.profile import KernelRow, profile
from lbcompiler.bench.targets import NONE, bench_target
from lbcompiler.bench.timing import ROUNDS, Progress, Work, interleaved, silent
from lbcompiler.errors import ConfigError
from lbcompiler.speed import synthetic_inputs
from lbcompiler.targets.cpu.threads import set_threads

SECONDS = 60.0  # rounds end then


@dataclass(frozen=True)
class ModelPeer:
    """`ratio` above 1: ours is faster."""

    ms: float
    ratio: float


@dataclass(frozen=True)
class ModelSpeed:
    """See docs/json.md. `ceilings` (GOP/s; `read`, `copy` in GB/s) and `profile` are empty unless
    asked for; `missing` holds the reason of every peer that could not run the model.
    """

    artifact: str
    against: str | None
    threads: int
    inputs: dict[str, list[int]]
    ms: float
    peers: dict[str, ModelPeer]
    missing: dict[str, str]
    ceilings: dict[str, float]
    profile: list[KernelRow]


def bench_model(
    path: str | Path,
    against: str | Path | None = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    peer_names: Sequence[str] | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    with_profile: bool = False,
    progress: Progress = silent,
) -> ModelSpeed:
    """Time an artifact on made-up inputs of the given shapes, against the float model if given.

    `peer_names` None: every runtime of the model that is installed.
    """
    if peer_names and against is None:
        raise ConfigError("peers run the float model: say --against MODEL too")
    artifact = open_artifact(path)
    count = set_threads(threads)
    feeds = synthetic_inputs(artifact, shapes)
    program = artifact.load(count)
    program.run(feeds)  # refuses what the model does not take before the peers are made
    others: dict[str, Work] = {}
    missing: dict[str, str] = {}
    if against is not None:
        source = Path(against)
        names = default_names(source) if peer_names is None else peer_names
        others, missing = model_peers(source, names, feeds, count, progress)
    target = program.manifest.target
    bounds = NONE
    if with_profile:
        bounds = bench_target(target.name).bounds(target.isa, count, rounds)
    work: dict[str, Work] = {OURS: lambda: program.run(feeds)} | others
    work |= {CEILING + name: run for name, run in bounds.work.items()}
    took = interleaved(work, rounds, SECONDS, progress=progress)
    rates = bounds.rates({name: took[CEILING + name] for name in bounds.work})
    return ModelSpeed(
        artifact=str(path),
        against=None if against is None else str(against),
        threads=count,
        inputs={name: list(array.shape) for name, array in feeds.items()},
        ms=took[OURS] * 1e3,
        peers={name: ModelPeer(took[name] * 1e3, took[name] / took[OURS]) for name in others},
        missing=missing,
        ceilings=rates,
        profile=profile(program, feeds, rates) if with_profile else [],
    )
