"""Measure, then decide: calibration data -> what becomes of every linear, and why.

    statistics of every group's input      one pass of the float model
    a rotation of the residual stream, a smoothing, where they are asked for
                                           the statistics are then taken once more
    candidates: each group in each format  groups in parallel, judged on their own outputs
    sensitivity of the model to each       the model's output with only that group quantized
    a plan within the budget               the exact program, then the whole model
    the gate                               the whole model beside plain rounding

Each step is kept in the state folder and found there by the next run that asks for the same."""

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lbcompiler.calibration.collect import Statistics, collect
from lbcompiler.calibration.samples import held_out, read_samples
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.calibration.tables import indexed_rows
from lbcompiler.config import FLOAT_CANDIDATE, WEIGHT_ONLY, CompileConfig
from lbcompiler.data import Feeds
from lbcompiler.decisions.budgets import within_budget
from lbcompiler.decisions.candidate_store import CandidateStore, Solutions, make_candidates
from lbcompiler.decisions.candidates import GroupProblem, Solution
from lbcompiler.decisions.costing import Costing
from lbcompiler.decisions.cut import OFF
from lbcompiler.decisions.decided import Decided
from lbcompiler.decisions.fold import Folder
from lbcompiler.decisions.gate import Gated, gated
from lbcompiler.decisions.latency import KernelSeconds
from lbcompiler.decisions.measure import Divergence, Measurement
from lbcompiler.decisions.measured import Measured
from lbcompiler.decisions.outcome import Outcome
from lbcompiler.decisions.plan import Measure, Option, Plan, Planner
from lbcompiler.decisions.residual import Residual, ResidualSearch
from lbcompiler.decisions.rounded import RoundedModel
from lbcompiler.decisions.sensitivities import (
    Sensitivities,
    by_gradients,
    by_measuring,
    by_output,
)
from lbcompiler.decisions.smooth import Smoothed, smoothed
from lbcompiler.decisions.tried import options_of
from lbcompiler.decisions.work import Work
from lbcompiler.errors import ConfigError
from lbcompiler.formats import Quantized
from lbcompiler.ir.model import Array, Layer, Model
from lbcompiler.passes.fold_rotations import producers
from lbcompiler.passes.rotate_residual import RotateResidual, stream_of
from lbcompiler.passes.smooth import Smooth
from lbcompiler.passes.split_outliers import can_reorder
from lbcompiler.pipeline import Progress, run

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
        self.gradients = gradients
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
        self.budget = "" if config.budget is None else config.budget[0]
        self.costing = Costing(
            self.parts, lambda layer: self.simulator.weight(layer), self.budget, seconds
        )
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
        self.smoothing = Smoothed({}, "")
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
        smoothings = self.smoothing.by_layer
        known = Measured(self.parts, self.simulator.weight, statistics, solutions, smoothings)
        if self.config.chooses:
            return self._planned(known)
        options = {group: Option(row[-1], 0.0, 0.0) for group, row in solutions.items()}
        picked, gate = self._gated(options)
        return self._result(picked, gate, statistics), known

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

    @cached_property
    def _judged(self) -> list[Feeds]:
        """The batches that plans are measured on."""
        return list(islice(self.judge, JUDGED))

    @cached_property
    def _rounded(self) -> RoundedModel:
        """What changes of the whole model are judged by."""
        return RoundedModel(
            self.parts, self.pairs[0], self.options, self._judged, self.work, self.state
        )

    def _residual(self, statistics: Statistics) -> Statistics:
        """The residual stream rotated where it helps, and what its linears read then."""
        name = f"residual-{_digest(self.key)}"
        search = ResidualSearch(self.simulator, statistics, self._rounded, name, self.progress)
        self.residual = search.settled()
        rotation = self.residual.rotation
        if rotation is None:
            return statistics
        self.turned = set(stream_of(self.simulator.model.module).layers())
        self.simulator = Simulator(run((RotateResidual(rotation),), self.simulator.model))
        return self._statistics([*self.key, "residual"])

    def _smoothed(self, statistics: Statistics) -> Statistics:
        """The model smoothed where it helps, and what its linears read then."""
        name = f"smoothing-{_digest(self.key)}"
        plain = self.residual.rounded
        self.smoothing = smoothed(
            self.simulator, statistics, self._rounded, plain, name, self.progress
        )
        by_layer = self.smoothing.by_layer
        if not by_layer:
            return statistics
        self.simulator = Simulator(run((Smooth(by_layer),), self.simulator.model))
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

    @cached_property
    def _measurement(self) -> Measurement:
        """Of the model as its layers are decided: turned and smoothed."""
        return Measurement(
            self.simulator,
            self._judged,
            self.parts,
            self.store.weights,
            self.config.hadamard_seed,
            self.reordering,
        )

    @cached_property
    def _measure(self) -> Measure:
        return self._kept(lambda chosen: self._measurement.plan(chosen))

    def _planned(self, known: Measured) -> tuple[Decided, Measured]:
        solutions, budget = known.solutions, self.config.budget
        sensitivities = self._sensitivities(solutions)
        offers_float = FLOAT_CANDIDATE in self.config.candidates
        table = self.costing.table(solutions, sensitivities, offers_float=offers_float)

        def passed(plan: Plan, picked: Mapping[str, Option], gate: Gated) -> Plan:
            return table.plan(picked, gate.divergence or plan.divergence)

        planner = Planner(
            table, self._measure, lambda plan: passed(plan, *self._gated(plan.chosen))
        )
        plan = None if budget is None else within_budget(planner, *budget)
        uniform = [planner.measured(picked) for picked in table.uniform]
        if budget is None and len(self.config.candidates) == 1:
            plan = uniform[-1]
        front = planner.front()
        picked, gate = self._gated({} if plan is None else plan.chosen)
        if plan is not None:
            plan = passed(plan, picked, gate)
        decided = self._result(picked, gate, known.statistics, front)
        return decided, replace(
            known,
            sensitivities=sensitivities,
            options=table.options,
            uniform=tuple(uniform),
            front=tuple(front),
            plan=plan,
        )

    def _gated(self, picked: Mapping[str, Option]) -> tuple[dict[str, Option], Gated]:
        """What the whole model is better for; groups that stay in float are not asked about."""
        chosen = {g: o.solution for g, o in picked.items() if o.solution is not None}
        gate = gated(chosen, self._measure, self._alone, self.budget)
        put_back = {
            g: replace(picked[g], solution=gate.kept[g], bits=self.costing.bits(g, gate.kept[g]))
            for g in gate.dropped
        }
        return {**picked, **put_back}, gate

    def _alone(self, solutions: Mapping[str, Sequence[Solution]]) -> Sensitivities:
        """The model with one group quantized, in each of its solutions."""
        name = f"{self.store.folder}/sensitivity"
        measurement = self._measurement.first(SENSED)
        return by_measuring(solutions, measurement, self.state, name, self.progress)

    def _sensitivities(self, solutions: Solutions) -> Sensitivities:
        if self.config.sensitivity == "output":
            return by_output(solutions)
        if self.config.sensitivity == "model":
            return self._alone(solutions)
        assert self.gradients is not None  # `compile` sees to it
        gradients = partial(self.gradients, self._judged)
        name = f"fisher-{_digest(self.data_key)}"
        return by_gradients(solutions, self.parts, gradients, self.state, name, self.progress)

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
        self,
        picked: Mapping[str, Option],
        gate: Gated,
        statistics: Statistics,
        front: Sequence[Plan] = (),
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
            self.smoothing,
            self.residual,
            self.turned,
        )
        return outcome.decided(picked, gate, front)


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
