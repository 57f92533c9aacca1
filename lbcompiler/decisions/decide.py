"""Measure, then decide: calibration data -> what becomes of every linear, and why.

    statistics of every group's input      one pass of the float model
    a rotation of the residual stream, a smoothing, where they are asked for
                                           the statistics are then taken once more
    candidates: each group in each format  groups in parallel, judged on their own outputs
    sensitivity of the model to each       the model's output with only that group quantized
    a plan within the budget               the exact program, then the whole model

Each step is kept in the state folder and found there by the next run that asks for the same."""

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lbcompiler.calibration.collect import Statistics, collect
from lbcompiler.calibration.samples import held_out, read_samples
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.calibration.tables import indexed_rows
from lbcompiler.config import FLOAT, FLOAT_CANDIDATE, WEIGHT_ONLY, CompileConfig
from lbcompiler.data import Feeds
from lbcompiler.decisions.budgets import cost_of, within_budget
from lbcompiler.decisions.candidate_store import CandidateStore, Solutions, make_candidates
from lbcompiler.decisions.candidates import GroupProblem, Solution
from lbcompiler.decisions.cut import OFF, WIDE
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.fold import Folder
from lbcompiler.decisions.latency import KernelSeconds
from lbcompiler.decisions.measure import Divergence, Measurement
from lbcompiler.decisions.measured import Measured
from lbcompiler.decisions.outcome import Outcome
from lbcompiler.decisions.plan import Measure, Option, Plan, Planner, Table, bits_of
from lbcompiler.decisions.residual import Residual, ResidualSearch
from lbcompiler.decisions.sensitivities import (
    Sensitivities,
    by_gradients,
    by_measuring,
    by_output,
)
from lbcompiler.decisions.smooth import smoothings
from lbcompiler.decisions.tried import options_of
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.formats import Quantized, format_named
from lbcompiler.ir.model import Array, Layer, Model
from lbcompiler.ir.smoothing import Smoothing
from lbcompiler.passes.fold_rotations import producers
from lbcompiler.passes.rotate_residual import RotateResidual, stream_of
from lbcompiler.passes.smooth import Smooth
from lbcompiler.passes.split_outliers import can_reorder
from lbcompiler.pipeline import Progress, run
from lbcompiler.smoothing import Rounding

JUDGED = 4  # batches that plans are measured on
SENSED = 1  # of them, for the many measurements of one group alone


# (batches) -> by layer, what the model's output loses for a relative error of 1 of the layer's
Gradients = Callable[[Sequence[Feeds]], dict[str, float]]


def decide(
    observed: Model,
    layers: Mapping[str, Layer],
    config: CompileConfig,
    data: Any,
    identity: Mapping[str, str],
    work: Work,
    progress: Progress,
    on_the_fly: Container[str],
    gradients: Gradients | None = None,
    seconds: KernelSeconds | None = None,
) -> tuple[Decided, Measured]:
    """`observed` went through `passes.OBSERVE`; `layers` are what `select_formats` made of them,
    and those with a weight format are decided. `data` is what `read_samples` takes, `identity`
    names the model for the state folder. Where a choice is to be measured but no budget says which,
    nothing is decided. `on_the_fly` are the scale rules of activations that the
    target's kernels have; `gradients` and `seconds` are asked where the choice is made by them.

    Raises InputError for the data, ConfigError for a budget that cannot be met.
    """
    with _state_folder(work.state) as path:
        state = State.open(path, identity)
        decider = _Decider(
            observed, layers, config, data, state, work, progress, on_the_fly, gradients, seconds
        )
        decided, measured = decider.decided()
        if work.state is not None:
            return decided, measured
        held = {name: load() for name, load in decided.weights.items()}  # the folder goes away
        weights = {name: _given(quantized) for name, quantized in held.items()}
        return replace(decided, weights=weights), measured


class _Decider:
    """The steps, in order; each reads what the one before has left in the state folder."""

    def __init__(
        self,
        observed: Model,
        layers: Mapping[str, Layer],
        config: CompileConfig,
        data: Any,
        state: State,
        work: Work,
        progress: Progress,
        on_the_fly: Container[str],
        gradients: Gradients | None,
        seconds: KernelSeconds | None,
    ) -> None:
        self.gradients, self.seconds = gradients, seconds
        if data is None:
            raise ConfigError(
                "deciding layer by layer needs calibration data: --calibration-data FILE.npz "
                "(samples along the first axis), or --calibration random to do with noise"
            )
        self.config, self.state, self.work, self.progress = config, state, work, progress
        samples = read_samples(
            data, observed.inputs, observed.dims, config.calibration_samples, indexed_rows(observed)
        )
        self.learn, self.judge = held_out(samples)
        progress("observe", 0, 1)
        self.simulator = Simulator(observed)
        progress("observe", 1, 1)
        chosen = {name for name, layer in layers.items() if layer.weight_format != WEIGHT_ONLY}
        self.parts = {  # of the groups that are decided: the layers that are, by the group's name
            group.name: layers_of
            for group in self.simulator.groups
            if (layers_of := tuple(name for name in group.layers if name in chosen))
        }
        if not self.parts:
            raise ConfigError("there is no layer to decide: none is included and quantizable")
        self.elements = {
            group: sum(self.simulator.weight(layer).size for layer in part)
            for group, part in self.parts.items()
        }
        self._check_rotation()
        self.options = options_of(config, on_the_fly)
        formats = [name for name in config.candidates if name != FLOAT_CANDIDATE]
        self.pairs = [(name, config.act_format or name) for name in formats]
        self.data_key: list[Any] = [samples.fingerprint, samples.count]
        smoothed_for = self.pairs[0] if config.smooth == "auto" else None
        decided = [asdict(self.options), sorted(chosen), config.act_format, smoothed_for]
        decided += [self.pairs[0], "residual"] if config.rotate_residual == "auto" else []
        self.key = [*self.data_key, *decided]
        self.store = CandidateStore(state, f"candidates-{_digest(self.key)}")
        self.smoothings: dict[str, Smoothing] = {}
        self.reordering: set[str] = set()
        self.residual = Residual(None, "")
        self.turned: set[str] = set()  # the layers that read or write it

    def _check_rotation(self) -> None:
        size = self.config.hadamard
        if not isinstance(size, int):
            return
        decided = (group for group in self.simulator.groups if group.name in self.parts)
        odd = next((group for group in decided if group.k % size), None)
        if odd is not None:
            raise ConfigError(
                f"layer {self.parts[odd.name][0]!r} sums over {odd.k} inputs, which are no whole "
                f"blocks of a rotation of {size}: choose a power of two that divides it, say "
                "--hadamard auto, or leave the layer in float with --exclude"
            )

    def decided(self) -> tuple[Decided, Measured]:
        statistics = self._statistics(self.data_key)
        if self.config.rotate_residual == "auto":
            statistics = self._residual(statistics)
        if self.config.smooth == "auto":
            statistics = self._smoothed(statistics)
        self.reordering = self._reordering()
        solutions = self._candidates(statistics)
        known = Measured(self.parts, self.simulator.weight, statistics, solutions, self.smoothings)
        if self.config.chooses:
            return self._planned(known)
        chosen = {group: options[-1] for group, options in solutions.items()}
        options = {g: Option(s, 0.0, 0.0) for g, s in chosen.items()}
        return self._result(options, statistics), known

    def _reordering(self) -> set[str]:
        """Groups whose input channels can have any order, for their outliers to stand together."""
        if self.config.outliers == OFF:
            return set()
        reasons = can_reorder(self.simulator.model.module)
        return {layer for layer, reason in reasons.items() if not reason}

    def _statistics(self, key: list[Any]) -> Statistics:
        weighs = self.options.weighs
        name = f"statistics-{_digest(key)}{'' if weighs else '-brief'}"
        return collect(self.simulator, self.learn, self.state, name, weighs, self.progress)

    def _residual(self, statistics: Statistics) -> Statistics:
        """The residual stream rotated where it helps, and what its linears read then."""
        search = ResidualSearch(
            self.simulator,
            self.parts,
            statistics,
            self.pairs[0],
            self.options,
            list(islice(self.judge, JUDGED)),
            self.work,
            self.state,
            f"residual-{_digest(self.key)}",
            self.progress,
        )
        self.residual = search.settled()
        rotation = self.residual.rotation
        if rotation is None:
            return statistics
        self.turned = set(stream_of(self.simulator.model.module).layers())
        self.simulator = Simulator(run((RotateResidual(rotation),), self.simulator.model))
        return self._statistics([*self.key, "residual"])

    def _smoothed(self, statistics: Statistics) -> Statistics:
        """The model smoothed where it helps, and what its linears read then."""
        weight, act = self.pairs[0]
        rounding = Rounding(format_named(weight), None if act == WEIGHT_ONLY else format_named(act))
        name = f"smoothing-{_digest(self.key)}"
        self.smoothings = smoothings(
            self.simulator, self.parts, statistics, rounding, self.state, name, self.progress
        )
        if not self.smoothings:
            return statistics
        self.simulator = Simulator(run((Smooth(self.smoothings),), self.simulator.model))
        return self._statistics([*self.key, "smoothed"])

    def _candidates(self, statistics: Statistics) -> Solutions:
        def problem(group: str) -> GroupProblem:
            weights = tuple(self.simulator.weight(layer) for layer in self.parts[group])
            return self._problem(group, statistics, weights)

        return make_candidates(
            problem,
            list(self.parts),
            self.pairs,
            self.options,
            self.store,
            self.work.jobs,
            self.work.backend,
            self.progress,
        )

    def _problem(
        self, group: str, statistics: Statistics, weights: tuple[Array, ...]
    ) -> GroupProblem:
        known = statistics[group]
        return GroupProblem(
            weights, known.mean_hessian, known.sample, known.absmax, group in self.reordering
        )

    def _planned(self, known: Measured) -> tuple[Decided, Measured]:
        solutions, budget = known.solutions, self.config.budget
        measurement = Measurement(
            self.simulator,
            list(islice(self.judge, JUDGED)),
            self.parts,
            self.store.weights,
            self.config.hadamard_seed,
            self.reordering,
        )
        sensitivities = self._sensitivities(solutions, measurement.first(SENSED))
        table = self._table(solutions, sensitivities, "" if budget is None else budget[0])
        planner = Planner(table, self._kept(measurement.plan))
        plan = None if budget is None else within_budget(planner, *budget)
        uniform = [planner.measured(picked) for picked in table.uniform]
        if budget is None and len(self.config.candidates) == 1:
            plan = uniform[-1]
        front = planner.front()
        decided = self._result({} if plan is None else plan.chosen, known.statistics, front)
        return decided, replace(
            known,
            sensitivities=sensitivities,
            options=table.options,
            uniform=tuple(uniform),
            front=tuple(front),
            plan=plan,
        )

    def _sensitivities(self, solutions: Solutions, measurement: Measurement) -> Sensitivities:
        if self.config.sensitivity == "output":
            return by_output(solutions)
        if self.config.sensitivity == "model":
            name = f"{self.store.folder}/sensitivity"
            return by_measuring(solutions, measurement, self.state, name, self.progress)
        assert self.gradients is not None  # `compile` sees to it
        gradients = partial(self.gradients, list(islice(self.judge, JUDGED)))
        name = f"fisher-{_digest(self.data_key)}"
        return by_gradients(solutions, self.parts, gradients, self.state, name, self.progress)

    def _table(
        self, solutions: Solutions, measured: Mapping[str, Sequence[Divergence]], budget: str
    ) -> Table:
        options = {}
        for group, row in solutions.items():
            costs = [cost_of(d, budget) for d in measured[group]]
            offered: list[tuple[Solution | None, float]] = list(zip(row, costs, strict=True))
            if FLOAT_CANDIDATE in self.config.candidates:
                offered.append((None, 0.0))
            options[group] = [
                Option(s, cost, self._load(group, s, budget), self._bits(group, s))
                for s, cost in offered
            ]
        return Table(options, self.elements)

    def _bits(self, group: str, solution: Solution | None) -> float:
        """Of an element of the group's weights, with those that a second product holds again."""
        if solution is None:
            return bits_of(FLOAT)
        k = int(self.simulator.weight(self.parts[group][0]).shape[1])
        return bits_of(solution.choice.weight_format) + bits_of(WIDE) * solution.taken / k

    def _load(self, group: str, solution: Solution | None, budget: str) -> float:
        if budget == "max_latency":
            shapes = [self.simulator.weight(layer).shape for layer in self.parts[group]]
            assert self.seconds is not None  # `compile` sees to it
            return self.seconds(solution, shapes)
        return self._bits(group, solution) * self.elements[group]

    def _kept(self, measure: Measure) -> Measure:
        """`measure`, asked once for a plan: what it answers stays in the state folder."""
        name = f"{self.store.folder}/plans"
        known = self.state.load_record(name) or {}
        before = len(known)

        def kept(chosen: Mapping[str, Solution]) -> Divergence:
            key = _digest({group: solution.choice.name for group, solution in chosen.items()})
            if key not in known:
                self.progress("choose", len(known) - before, 0)
                found = measure(chosen)
                known[key] = [found.noise, found.kl]
                self.state.save_record(name, known)
            return Divergence(*known[key])

        return kept

    def _result(
        self, picked: Mapping[str, Option], statistics: Statistics, front: Sequence[Plan] = ()
    ) -> Decided:
        """Of a choice that was made from a front; without one there was none to make."""
        group_of = {layer: g for g, layers in self.parts.items() for layer in layers}
        folder = Folder(
            producers(self.simulator.model.module),
            lambda layer, weight: self._problem(group_of[layer], statistics, (weight,)),
            self.simulator.weight,
            self.options,
            self.store,
        )
        outcome = Outcome(
            self.parts,
            self.config,
            self.store,
            folder,
            self.smoothings,
            self.residual,
            self.turned,
        )
        return outcome.decided(picked, front)


def _digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def _state_folder(path: Path | None) -> Iterator[Path]:
    if path is not None:
        yield path
        return
    with TemporaryDirectory(prefix="lbc-state-") as folder:
        yield Path(folder)


def _given(quantized: Quantized) -> Callable[[], Quantized]:
    return lambda: quantized
