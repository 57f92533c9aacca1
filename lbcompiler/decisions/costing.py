"""What every option of a group is worth: what the model loses to it, and what a budget counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lbcompiler.config import FLOAT
from lbcompiler.decisions.candidate_store import Solutions
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.cut import WIDE
from lbcompiler.decisions.latency import KernelSeconds
from lbcompiler.decisions.losses import cost_of
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.plan import Option, Table, bits_of
from lbcompiler.ir.model import Array


@dataclass(frozen=True)
class Costing:
    """parts: the layers that are decided of each group; weight: of a layer, in float; budget: what
    is limited, "" where nothing is; seconds: of a group's kernels, asked where that is time.
    """

    parts: Mapping[str, tuple[str, ...]]
    weight: Callable[[str], Array]
    budget: str
    seconds: KernelSeconds | None = None

    def table(
        self,
        solutions: Solutions,
        measured: Mapping[str, Sequence[Divergence]],
        *,
        offers_float: bool,
    ) -> Table:
        """The solutions with what was measured of each, and float behind them where offered."""
        options = {}
        for group, row in solutions.items():
            costs = [cost_of(d, self.budget) for d in measured[group]]
            offered: list[tuple[Solution | None, float]] = list(zip(row, costs, strict=True))
            if offers_float:
                offered.append((None, 0.0))
            options[group] = [
                Option(s, cost, self._load(group, s), self.bits(group, s)) for s, cost in offered
            ]
        return Table(options, {group: self._elements(group) for group in self.parts})

    def bits(self, group: str, solution: Solution | None) -> float:
        """Of an element of the group's weights, with those that a second product holds again."""
        if solution is None:
            return bits_of(FLOAT)
        k = int(self.weight(self.parts[group][0]).shape[1])
        return bits_of(solution.choice.weight_format) + bits_of(WIDE) * solution.taken / k

    def _load(self, group: str, solution: Solution | None) -> float:
        if self.budget == "max_latency":
            assert self.seconds is not None  # `compile` sees to it
            return self.seconds(solution, [self.weight(n).shape for n in self.parts[group]])
        return self.bits(group, solution) * self._elements(group)

    def _elements(self, group: str) -> int:
        """Of the group's weights."""
        return sum(self.weight(name).size for name in self.parts[group])
