"""What deciding gives: what becomes of every layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lbcompiler.config import FLOAT, WEIGHT_ONLY
from lbcompiler.decisions.candidates import Solution
from lbcompiler.formats import Quantized
from lbcompiler.ir.rotation import Rotation
from lbcompiler.ir.smoothing import Smoothing
from lbcompiler.passes.apply_decisions import Decision


@dataclass(frozen=True)
class ParetoPoint:
    """A measured plan: kl is None where the model has no logits, plan is format by layer."""

    effective_bits: float
    kl: float | None
    qsnr_db: float
    plan: dict[str, str]


@dataclass(frozen=True)
class Decided:
    """decisions: by layer; weights: layer -> its codes; pareto: few bits first."""

    decisions: Mapping[str, Decision]
    weights: Mapping[str, Callable[[], Quantized]]
    smoothings: Mapping[str, Smoothing] = field(default_factory=dict)
    pareto: tuple[ParetoPoint, ...] = ()


def decision_of(solution: Solution | None, reason: str, seed: int | None) -> Decision:
    """None leaves the layer in float; `seed` is of its rotation's signs."""
    if solution is None:
        return Decision(FLOAT, WEIGHT_ONLY, WEIGHT_ONLY, WEIGHT_ONLY, "", None, reason)
    choice = solution.choice
    return Decision(
        choice.weight_format,
        choice.act_format,
        choice.rule,
        choice.act_rule,
        choice.quantizer,
        Rotation(choice.hadamard, seed) if choice.hadamard else None,
        reason,
    )
