"""`lbc tune`, top to bottom: what to tune -> a study for each -> trials -> the best, kept."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbcompiler.compiler import merged
from lbcompiler.config import CompileConfig, masked
from lbcompiler.errors import is_interruption
from lbcompiler.pipeline import Progress, silent
from lbcompiler.targets.configs import Shape, Tuned, shape_class
from lbcompiler.tuning.database import Subject, default_path, open_database, readable
from lbcompiler.tuning.database import versions as current_versions
from lbcompiler.tuning.machine import Machine
from lbcompiler.tuning.measure import Bench
from lbcompiler.tuning.results import export, results_in
from lbcompiler.tuning.search import Limits, search
from lbcompiler.tuning.study import TuningStudy
from lbcompiler.tuning.targets import open_target
from lbcompiler.tuning.work import Fields, KernelFor, Work, distinct, work_of_model

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

ROWS = (1, 128)  # M of a model's layers where its inputs leave it open: one token, a sentence
MakeBench = Callable[[Work, Machine, int], Bench]


@dataclass(frozen=True)
class Outcome:
    """What is known of one kernel at one shape (M, K, N); milliseconds of one call.

    `trials` were made so far, `failed` of them gave no time. `config` equals `default` where
    nothing was faster for sure.
    """

    kernel: str
    shape: Shape
    shape_class: str
    trials: int
    failed: int
    default: Fields
    config: Fields
    default_ms: float
    ms: float


@dataclass(frozen=True)
class Tuner:
    """An open database and a machine to measure on."""

    database: str
    storage: "BaseStorage"
    machine: Machine
    isa: str
    kernel_for: KernelFor
    tuned: Tuned  # what a compile takes without a database
    make_bench: MakeBench

    def run(
        self, work: Iterable[Work], limits: Limits, progress: Progress = silent
    ) -> Iterator[Outcome]:
        """An outcome for each; where a search ends by an error, that of its half first."""
        for item in work:
            with readable(self.database):
                yield from self._run(item, limits, progress)

    def _run(self, work: Work, limits: Limits, progress: Progress) -> Iterator[Outcome]:
        subject = Subject(
            kernel=work.kernel.tuned_as(work.shape[0]),
            isa=self.isa,
            shape=work.shape,
            processor=self.machine.processor,
            versions=current_versions(),
        )
        study = TuningStudy(self.storage, work, subject)
        try:
            if study.needs_search(limits.trials):
                search(study, self.make_bench(work, self.machine, limits.jobs), limits, progress)
        except BaseException as error:
            if study.searched:
                yield _outcome(study, work, subject)
            if is_interruption(error):
                raise KeyboardInterrupt from None
            raise
        yield _outcome(study, work, subject)

    def other_versions(self) -> int:
        """Results in the database that a compile of this version does not use."""
        with readable(self.database):
            subjects = [subject for subject, _ in results_in(self.storage)]
        return sum(subject.versions != current_versions() for subject in subjects)

    def export(self, path: Path) -> int:
        """Write what beats the default here, for the instruction set, as a table; how many."""
        with readable(self.database):
            return export(self.storage, path, self.machine.processor, self.isa)


@contextmanager
def open_tuner(
    target: str = "cpu",
    db: str | Path | None = None,
    *,
    threads: int | None = None,
    rpc: str | None = None,
    make_bench: MakeBench | None = None,
) -> Iterator[Tuner]:
    """Raises ConfigError where the database or the machine cannot be used."""
    with open_target(target, threads, rpc) as held:
        storage = open_database(db)
        database = masked(str(default_path() if db is None else db))
        with _quiet_optuna():
            yield Tuner(
                database,
                storage,
                held.machine,
                held.isa,
                held.kernel_for,
                held.tuned,
                make_bench or held.make_bench,
            )


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """It tells of every study and trial, at the level of a process's own settings."""
    import optuna

    held = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(held)


def work_for(
    tuner: Tuner,
    config: CompileConfig,
    model: Any = None,
    shapes: Sequence[Shape] = (),
    rows: Sequence[int] = ROWS,
) -> list[Work]:
    """Each distinct kernel and shape: those of `shapes`, then those of the model's linears."""
    kernel = tuner.kernel_for(config.weight_format, config.activation_format)
    work = [Work.of(kernel, shape, tuner.tuned) for shape in shapes]
    if model is not None:
        work += work_of_model(model, config, tuner.kernel_for, tuner.tuned, rows)
    return distinct(work)


def tune(
    model: Any = None,
    *,
    shapes: Sequence[Shape] = (),
    target: str | None = None,
    format: str | None = None,
    act_format: str | None = None,
    inputs: Mapping[str, str] | None = None,
    config: CompileConfig | str | Path | None = None,
    rows: Sequence[int] = ROWS,
    trials: int = Limits.trials,
    seconds: float = Limits.seconds,
    jobs: int = Limits.jobs,
    db: str | Path | None = None,
    threads: int | None = None,
    rpc: str | None = None,
    progress: Progress = silent,
) -> list[Outcome]:
    """Search the fastest config of kernels by measuring; the results stay in a database.

    What is tuned: the linears of `model` (as `compile` takes it) at `rows` rows of activations, or
    at its own where `inputs` fix them, and `shapes` (M, K, N). Whichever ends a search first:
    `trials` in all, `seconds` of this call. `db` is a file or an Optuna storage URL, `rpc` another
    machine to measure on (`host:port`, or `host:port:key` of a tracker).

    Raises ConfigError or ModelError; what was measured before is kept.
    """
    given = {
        "target": target,
        "format": format,
        "act_format": act_format,
        "inputs": None if inputs is None else dict(inputs),
    }
    settings = merged(config, {key: value for key, value in given.items() if value is not None})
    with open_tuner(settings.target, db, threads=threads, rpc=rpc) as tuner:
        work = work_for(tuner, settings, model, shapes, rows)
        return list(tuner.run(work, Limits(trials, seconds, jobs), progress))


def _outcome(study: TuningStudy, work: Work, subject: Subject) -> Outcome:
    best = study.best(subject)
    side, k, n = shape_class(work.kernel, work.shape)
    return Outcome(
        kernel=work.kernel.name,
        shape=work.shape,
        shape_class=f"{side} k{1 << k} n{1 << n}",
        trials=study.searched,
        failed=study.failed,
        default=work.default_fields,
        config=best.config,
        default_ms=best.default_ms,
        ms=best.ms,
    )
