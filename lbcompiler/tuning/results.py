"""What a database or a table holds, as the sources that a kernel's config is chosen from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbcompiler.config import masked
from lbcompiler.files import appearing
from lbcompiler.targets.configs import Result, Source, Table, read_table
from lbcompiler.tuning.database import Subject, open_database, readable, versions
from lbcompiler.tuning.study import best_result, default_of
from lbcompiler.tuning.targets import machines_here

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


@dataclass(frozen=True)
class Found:
    """`sources`: those of this machine's processor, or of its GPU, first. `other_versions` counts
    results passed over.
    """

    name: str
    sources: tuple[Source, ...]
    other_versions: int

    @property
    def count(self) -> int:
        return sum(len(source.results) for source in self.sources)


def read_results(database: str | Path, target: str) -> Found:
    """The results in a database (URL or path) or in the .json of an export. Raises ConfigError.

    Results of other versions of lbcompiler or TVM are counted and not used; those of another
    processor (of `target` cuda: of another GPU) are used where this one has none.
    """
    name = masked(str(database))
    if name.endswith(".json"):
        table = read_table(Path(database))
        if table.versions != versions():
            return Found(name, (), len(table.results))
        return Found(name, (Source(name, table.results),), 0)
    storage = open_database(database, must_exist=True)
    with readable(database):
        return _read(name, storage, machines_here(target))


def _read(name: str, storage: "BaseStorage", here: set[str]) -> Found:
    held = results_in(storage)
    current = [(subject, result) for subject, result in held if subject.versions == versions()]
    mine = tuple(result for subject, result in current if subject.processor in here)
    sources = [Source(name, mine)] if mine else []
    for other in sorted({subject.processor for subject, _ in current} - here):
        results = tuple(result for subject, result in current if subject.processor == other)
        sources.append(Source(f"{name} ({other})", results))
    return Found(name, tuple(sources), len(held) - len(current))


def results_in(storage: "BaseStorage") -> list[tuple[Subject, Result]]:
    """The best of every kernel, shape, processor and versions."""
    import optuna

    best: dict[str, tuple[Subject, Result]] = {}
    for summary in optuna.get_all_study_summaries(storage, include_best_trial=False):
        subject = Subject.of(summary.user_attrs)
        if subject is None:
            continue
        study = optuna.load_study(study_name=summary.study_name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        result = best_result(subject, default_of(summary.user_attrs), trials)
        key = subject.to_json()
        if result is not None and (key not in best or result.ms < best[key][1].ms):
            best[key] = subject, result
    return list(best.values())


def export(storage: "BaseStorage", path: Path, processor: str, isa: str) -> int:
    """Write what beats the default on a processor and instruction set as a table; how many."""
    wanted = (processor, isa, versions())
    found = [
        result
        for subject, result in results_in(storage)
        if (subject.processor, subject.isa, subject.versions) == wanted
        and result.ms < result.default_ms
    ]
    ordered = tuple(sorted(found, key=lambda result: (result.kernel, result.shape)))
    table = Table(processor=processor, versions=versions(), results=ordered)
    with appearing(path) as partial:
        partial.write_text(table.to_text())
    return len(found)
