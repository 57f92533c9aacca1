"""What the model loses with all groups rounded to nearest, in the first candidate format: what a
change of the model itself is judged by, before anything is decided about its layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.data import Feeds
from lbcompiler.decisions.candidate_store import CandidateStore, make_candidates
from lbcompiler.decisions.candidates import GroupProblem, Options
from lbcompiler.decisions.cut import OFF
from lbcompiler.decisions.measure import Divergence, Measurement
from lbcompiler.decisions.work import Work
from lbcompiler.ir.model import Array
from lbcompiler.pipeline import Progress


@dataclass(frozen=True)
class RoundedModel:
    """parts: the layers that are decided of each group; formats: of weights and activations;
    options: of which rotations are tried. What was measured is kept in the state.
    """

    parts: Mapping[str, Sequence[str]]
    formats: tuple[str, str]
    options: Options
    batches: Sequence[Feeds]
    work: Work
    state: State

    def loss(
        self,
        simulator: Simulator,
        sample: Callable[[str], Array],
        folder: str,
        progress: Progress,
    ) -> Divergence:
        """Of `simulator`'s model; sample: rows (R, K) that a group of it reads."""
        known = self.state.load_record(f"{folder}/loss")
        if known is not None:
            return Divergence(*known)

        def problem(group: str) -> GroupProblem:
            weights = tuple(map(simulator.weight, self.parts[group]))
            return GroupProblem(weights, None, sample(group))

        options = replace(self.options, quantizer="rtn", rules=(), outliers=OFF)
        store, groups = CandidateStore(self.state, folder), list(self.parts)
        jobs, backend = self.work.jobs, self.work.backend
        found = make_candidates(
            problem, groups, [self.formats], options, store, jobs, backend, progress
        )
        solutions = {group: row[0] for group, row in found.items()}
        seed = self.options.seed
        measurement = Measurement(simulator, self.batches, self.parts, store.weights, seed)
        loss = measurement.plan(solutions)
        self.state.save_record(f"{folder}/loss", [loss.noise, loss.kl])
        return loss
