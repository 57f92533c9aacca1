"""What was measured on the way to a decision: what a report is made of, so that nothing is measured
twice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lbcompiler.calibration.collect import Statistics
from lbcompiler.decisions.candidate_store import Solutions
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.plan import Option, Plan
from lbcompiler.ir.model import Array
from lbcompiler.ir.smoothing import Smoothing


@dataclass(frozen=True)
class Measured:
    """By the name of a group: its decided layers, the statistics of its input, its solutions (one a
    candidate format) and beside them how far each alone takes the model's output away.

    weight: the float weight (N, K) of a layer. options: the solutions with their costs and bits,
    float behind them where that was offered. uniform: measured plans of one format everywhere;
    front: of those and of a sweep of budgets the plans that no other beats, few bits first; plan:
    the chosen one. The last five are empty or None where nothing was to be chosen.
    """

    layers: Mapping[str, tuple[str, ...]]
    weight: Callable[[str], Array]
    statistics: Statistics
    solutions: Solutions
    smoothings: Mapping[str, Smoothing]
    sensitivities: Mapping[str, Sequence[Divergence]] = field(default_factory=dict)
    options: Mapping[str, Sequence[Option]] = field(default_factory=dict)
    uniform: tuple[Plan, ...] = ()
    front: tuple[Plan, ...] = ()
    plan: Plan | None = None
