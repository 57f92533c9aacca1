"""The gate on the whole model: what was kept layer by layer is worth nothing where the model is no
better for it.

An error that is smaller is another error, and may reach the output by another way. So the model as
it was chosen is measured beside the same with every group rounded to nearest, and must lose clearly
less. Where it does not, groups are measured one by one in both ways, and those that gain by
themselves are kept where the model with them loses clearly less; else all are rounded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.plan import Measure

# Times what plain rounding loses: what may be lost. On four windows of 512 tokens SmolLM2 in mxfp8
# lost 0.97 times as much with rotations, and 1.06 times on eight others.
CLEARLY = 0.95

Chosen = Mapping[str, Solution]  # by group
Alone = Callable[[Mapping[str, Sequence[Solution]]], Mapping[str, Sequence[Divergence]]]
Cost = Callable[[Divergence], float]


@dataclass(frozen=True)
class Gated:
    """kept: of every group; dropped: what it was before, of those that are rounded instead;
    divergence: the model's, None where nothing was measured, as all was rounded to nearest.
    """

    kept: Chosen
    dropped: Chosen = field(default_factory=dict)
    divergence: Divergence | None = None
    said: str = ""


def gated(chosen: Chosen, measure: Measure, alone: Alone, cost: Cost) -> Gated:
    """`chosen`, or the part of it that the model is better for; its bits are no more, nor is its
    time. `alone` measures the model with one group quantized, in each way.
    """
    rounded = {group: solution.plain or solution for group, solution in chosen.items()}
    pairs = {g: [s, rounded[g]] for g, s in chosen.items() if s != rounded[g]}
    if not pairs:
        return Gated(chosen)
    as_chosen, plain = measure(chosen), measure(rounded)
    allowed = CLEARLY * cost(plain)
    said = f"the model loses {cost(plain):.4g} rounded to nearest, {cost(as_chosen):.4g} as chosen"
    if cost(as_chosen) < allowed:
        return Gated(chosen, {}, as_chosen, f"kept: {said}")
    gaining = {g for g, (own, other) in alone(pairs).items() if cost(own) < cost(other)}
    part = {group: (chosen if group in gaining else rounded)[group] for group in chosen}
    mixed = measure(part)
    said += f", {cost(mixed):.4g} with the {len(gaining)} of {len(pairs)} groups that gain alone"
    if cost(mixed) < allowed:
        dropped = {g: chosen[g] for g in pairs if g not in gaining}
        return Gated(part, dropped, mixed, f"kept in part: {said}")
    return Gated(rounded, {g: chosen[g] for g in pairs}, plain, f"dropped: {said}")
