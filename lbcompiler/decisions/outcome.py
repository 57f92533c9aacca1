"""What becomes of every layer once each group has its option."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lbcompiler.config import CompileConfig
from lbcompiler.decisions.candidate_store import CandidateStore
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.decided import (
    Decided,
    ParetoPoint,
    decision_of,
    dropped_reason,
    reason_of,
)
from lbcompiler.decisions.fold import Folder
from lbcompiler.decisions.gate import Gated
from lbcompiler.decisions.losses import BY_NOISE, alone_name
from lbcompiler.decisions.plan import Option, Plan
from lbcompiler.decisions.residual import Residual
from lbcompiler.decisions.smooth import Smoothed
from lbcompiler.formats import Quantized
from lbcompiler.ir.rotation import Rotation


@dataclass(frozen=True)
class Outcome:
    """parts: the layers that are decided of each group; turned: those of them, and others, that
    read or write the residual stream, where it is rotated.
    """

    parts: Mapping[str, tuple[str, ...]]
    config: CompileConfig
    store: CandidateStore
    folder: Folder
    smoothing: Smoothed
    residual: Residual
    turned: Collection[str]

    def decided(
        self, picked: Mapping[str, Option], gate: Gated, front: Sequence[Plan] = ()
    ) -> Decided:
        """Of a choice that was made from a front; without one there was none to make. picked: as
        it passed the gate.
        """
        ranked = self._ranked(picked, front[0].divergence.kl is not None) if front else {}
        decisions, splits = {}, {}
        weights: dict[str, Callable[[], Quantized]] = {}
        for group, option in picked.items():
            reason = reason_of(option, ranked.get(group, ""), self.config)
            if group in gate.dropped:
                reason = dropped_reason(gate.dropped[group])
            loads = self._loads(group, option.solution)
            for layer, load in zip(self.parts[group], loads, strict=True):
                why = f"{reason}; {self._stream_reason}" if layer in self.turned else reason
                decisions[layer] = decision_of(option.solution, why, self.config.hadamard_seed)
                if option.solution is not None and option.solution.choice.split is not None:
                    splits[layer] = option.solution.choice.split
                if load is not None:
                    weights[layer] = load
        folded: dict[str, Rotation] = {}
        for fold in self.folder.folds(self.parts, {g: o.solution for g, o in picked.items()}):
            folded |= dict.fromkeys(fold.readers, fold.rotation)
            if fold.weight is not None:
                weights[fold.producer] = fold.weight
            for layer in fold.readers:
                reason = f"{decisions[layer].reason}; {fold.producer} rotates its input"
                decisions[layer] = replace(decisions[layer], rotation=None, reason=reason)
        return Decided(
            decisions,
            weights,
            self.smoothing.by_layer,
            splits,
            self.residual.rotation,
            {
                "residual": self.residual.said,
                "smoothing": self.smoothing.said,
                "gate": gate.said,
            },
            folded,
            tuple(map(self._point, front)),
        )

    def _ranked(self, picked: Mapping[str, Option], with_kl: bool) -> dict[str, str]:
        """By group, how sensitive the model is to it; gradients are of the KL under any budget."""
        sensitivity, budget = self.config.sensitivity, self.config.budget
        by_noise = sensitivity == "model" and budget is not None and budget[0] == BY_NOISE
        what = alone_name(sensitivity, with_kl and not by_noise)
        groups = sorted(picked, key=lambda group: -picked[group].cost)
        return {
            g: f"alone it costs {picked[g].cost:.2e} ({what}), number {i} of {len(groups)}"
            for i, g in enumerate(groups, 1)
        }

    @property
    def _stream_reason(self) -> str:
        assert self.residual.rotation is not None
        return f"the residual stream is rotated in blocks of {self.residual.rotation.size}"

    def _loads(self, group: str, solution: Solution | None) -> list[Callable[[], Quantized] | None]:
        """Of the group's layers: one reading of its file gives each of them its codes, once."""
        count = len(self.parts[group])
        if solution is None:
            return [None] * count
        held: dict[int, Quantized] = {}

        def load(index: int) -> Quantized:
            if index not in held:
                held.update(enumerate(self.store.weights(group, solution)))
            return held.pop(index)

        return [partial(load, index) for index in range(count)]

    def _point(self, plan: Plan) -> ParetoPoint:
        options = {n: plan.chosen[g] for g, layers in self.parts.items() for n in layers}
        return ParetoPoint(
            plan.effective_bits,
            plan.divergence.kl,
            plan.divergence.qsnr_db,
            {layer: option.format for layer, option in options.items()},
            tuple(layer for layer, option in options.items() if option.is_split),
        )
