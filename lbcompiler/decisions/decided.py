"""What deciding gives: what becomes of every layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lbcompiler.config import FLOAT, WEIGHT_ONLY, CompileConfig
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.cut import OFF
from lbcompiler.decisions.plan import Option
from lbcompiler.formats import Quantized
from lbcompiler.ir.model import Array
from lbcompiler.ir.outliers import Split
from lbcompiler.ir.rotation import Rotation
from lbcompiler.ir.smoothing import Smoothing
from lbcompiler.passes.apply_decisions import Decision
from lbcompiler.passes.split_outliers import row_orders
from lbcompiler.quantizers import QUANTIZERS


@dataclass(frozen=True)
class ParetoPoint:
    """A measured plan: kl is None where the model has no logits, plan is format by layer, split
    are those whose outliers are split off.
    """

    effective_bits: float
    kl: float | None
    qsnr_db: float
    plan: dict[str, str]
    split: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decided:
    """decisions: by layer; weights: layer -> its codes, rows in their order in the source, columns
    as the layer's split has them; residual: the rotation of the residual stream; about: what was
    measured of the whole model, as the manifest has it; folded: the rotations of the layers whose
    inputs are made rotated, by layer; pareto: few bits first.
    """

    decisions: Mapping[str, Decision]
    weights: Mapping[str, Callable[[], Quantized]]
    smoothings: Mapping[str, Smoothing] = field(default_factory=dict)
    splits: Mapping[str, Split] = field(default_factory=dict)
    residual: Rotation | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    folded: Mapping[str, Rotation] = field(default_factory=dict)
    pareto: tuple[ParetoPoint, ...] = ()

    def codes(self, module: Any) -> dict[str, Callable[[], Quantized]]:
        """`weights` as the layers of a module have them whose outliers are split off: with the rows
        of those that compute a reordered input reordered too.
        """
        orders = row_orders(module, self.splits)
        return {
            layer: load if layer not in orders else partial(_in_order, load, orders[layer])
            for layer, load in self.weights.items()
        }


def _in_order(load: Callable[[], Quantized], rows: Array) -> Quantized:
    q = load()
    return Quantized(q.codes[rows], q.scales[rows], q.tensor_scale)


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
        choice.weight_format in QUANTIZERS[choice.quantizer].scales,
    )


def reason_of(option: Option, ranked: str, config: CompileConfig) -> str:
    """In a few words: what was gained over plain rounding, and how sensitive the model is, which
    `ranked` says, "" for nothing.
    """
    words = []
    if option.solution is not None:
        error, plain = option.solution.error, option.solution.plain_error
        words.append(f"relative output error {error:.2e}, {plain:.2e} rounded to nearest")
        if config.rotates and not option.solution.choice.hadamard:
            words.append("no rotation lowers it")
        if option.solution.choice.outliers:
            words.append(f"{option.solution.taken} channels split off for their outliers")
        elif config.outliers != OFF:
            words.append("no split lowers it")
    if ranked:
        words.append(ranked)
    return "; ".join(words)


def dropped_reason(solution: Solution) -> str:
    """Of a group that was put back to rounding: what its own solution was, as far as it differs."""
    choice, plain = solution.choice, (solution.plain or solution).choice
    said = {
        "quantizer": f"by {choice.quantizer}",
        "rule": f"with scales by {choice.rule}",
        "hadamard": f"rotated by {choice.hadamard}",
        "act_rule": f"with activations' scales by {choice.act_rule}",
        "outliers": f"with {solution.taken} channels split off",
    }
    differing = [how for name, how in said.items() if getattr(choice, name) != getattr(plain, name)]
    return (
        f"relative output error {solution.plain_error:.2e} rounded to nearest; "
        f"{solution.error:.2e} {', '.join(differing)}, but the model gains nothing by it"
    )
