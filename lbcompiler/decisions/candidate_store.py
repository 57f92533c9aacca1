"""The candidates of every group, made in parallel and kept in the state folder as they come.

A run that ends early, by Ctrl-C or a worker's death, has kept what was finished."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lbcompiler.calibration.state import State
from lbcompiler.decisions.candidates import Choice, GroupProblem, Options, Solution, solve
from lbcompiler.decisions.cut import OFF
from lbcompiler.decisions.jobs import WorkerDiedError, completed
from lbcompiler.errors import ConfigError, LbcError
from lbcompiler.formats import Quantized
from lbcompiler.ir.model import Array
from lbcompiler.pipeline import Progress

Formats = Sequence[tuple[str, str]]  # (weight format, activation format)
Names = Sequence[str]  # of a group's solutions, in their order
Solutions = dict[str, list[Solution]]  # by group; without their weights


@dataclass(frozen=True)
class CandidateStore:
    """Solutions by group and format under `folder` of a state folder."""

    state: State
    folder: str

    def weights(self, group: str, solution: Solution) -> tuple[Quantized, ...]:
        """The quantized weights of the group's layers, in their order."""
        kept = self.state.load(self._name(group, solution.choice.name))
        if kept is None:
            raise LbcError(
                f"the state folder {self.state.path} has lost the weights of layer {group!r}: "
                "remove it, and run again"
            )
        return _quantized(kept)

    def load(self, group: str, names: Names) -> list[Solution] | None:
        """What was kept for a group under all these names; None where one is missing."""
        records = [self.state.load_record(self._name(group, name)) for name in names]
        if any(record is None for record in records):
            return None
        return [_solution(record) for record in records]

    def save(self, group: str, names: Names, solutions: Sequence[Solution]) -> list[Solution]:
        """Keep them; the same without their weights. One that is the same as another has a record
        of its own and the other's weights; of a solution and its plain one by the same choice the
        solution's are kept.
        """
        plain = [s.plain for s in solutions if s.plain is not None]
        for solution in {s.choice: s for s in (*plain, *solutions)}.values():
            self.state.save(self._name(group, solution.choice.name), _arrays(solution.weights))
        kept = [solution.light for solution in solutions]
        for name, solution in zip(names, kept, strict=True):
            self.state.save_record(self._name(group, name), asdict(solution))
        return kept

    def _name(self, group: str, name: str) -> str:
        return f"{self.folder}/{file_name(group)}.{name}"


def _solution(record: dict[str, Any]) -> Solution:
    choice = Choice(**record["choice"] | {"outliers": tuple(record["choice"]["outliers"])})
    plain = None if record["plain"] is None else _solution(record["plain"])
    return Solution(choice, record["error"], plain, record["taken"])


def file_name(group: str) -> str:
    """A layer's name as that of a file: what a path could misread is written as %XX."""
    return "".join(c if c.isalnum() or c in "._-" else f"%{ord(c):02X}" for c in group)


def make_candidates(
    problem: Callable[[str], GroupProblem],
    groups: Sequence[str],
    formats: Formats,
    options: Options,
    store: CandidateStore,
    jobs: int | None,
    backend: str,
    progress: Progress,
) -> Solutions:
    """Every group's solutions, at most `jobs` groups at a time (see `jobs.completed`); `problem` is
    asked for in the parent process.

    Raises ConfigError where a worker died."""
    names = [weight for weight, _ in formats]
    if options.outliers != OFF:
        names += [f"{weight}.split" for weight in names]
    found = {group: store.load(group, names) for group in groups}
    missing = [group for group, solutions in found.items() if solutions is None]
    progress("quantize", len(groups) - len(missing), len(groups))
    if missing:
        work = ((group, problem(group), formats, options) for group in missing)
        try:
            with closing(completed(backend, jobs, _job, work)) as results:
                for done, (group, solutions) in enumerate(results, 1):
                    found[group] = store.save(group, names, solutions)
                    progress("quantize", len(groups) - len(missing) + done, len(groups))
        except WorkerDiedError as error:
            raise ConfigError(
                f"a worker process died, perhaps for lack of memory ({error}): what was finished "
                f"is kept in {store.state.path}; run again, with fewer --jobs"
            ) from None
    return {group: solutions for group, solutions in found.items() if solutions is not None}


def _job(
    group: str, problem: GroupProblem, formats: Formats, options: Options
) -> tuple[str, list[Solution]]:
    return group, solve(problem, formats, options)


def _arrays(weights: Sequence[Quantized]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for i, q in enumerate(weights):
        arrays |= {f"{i}.codes": q.codes, f"{i}.scales": q.scales}
        if q.tensor_scale is not None:
            arrays[f"{i}.tensor_scale"] = np.asarray(q.tensor_scale, np.float32)
    return arrays


def _quantized(arrays: Mapping[str, Array]) -> tuple[Quantized, ...]:
    count = sum(name.endswith(".codes") for name in arrays)
    return tuple(
        Quantized(arrays[f"{i}.codes"], arrays[f"{i}.scales"], arrays.get(f"{i}.tensor_scale"))
        for i in range(count)
    )
