"""The gate on the whole model: what was kept layer by layer is worth nothing where the model is no
better for it.

An error that is smaller is another error, and may reach the output by another way. So the model is
measured

    with all groups rounded to nearest,
    with all as chosen,
    with those as chosen that gain by themselves, the others rounded.

The first stays unless the second loses clearly less, and the better of them unless the third does.
On SmolLM2 (noise on its weights, 4096 held-out tokens) the KL of GPTQ in mxfp8_e5m2 is 0.214, 0.231
and 0.160. To find the third every group is measured by itself, which takes long, and is left out
where all together gain so much that hardly one can lose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lbcompiler.decisions.budgets import HELD_TO
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.losses import compared, cost_of
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.plan import Measure

# Times what plain rounding loses: what may be lost. On four windows of 512 tokens SmolLM2 in mxfp8
# lost 0.97 times as much with rotations, and 1.06 times on eight others.
CLEARLY = 0.95
# The same, of all as chosen: below it parts are not measured. By MR-GPTQ SmolLM2 loses 0.21 times
# as much in mxint8 and 0.27 in nvint4, where all of 120 groups gain by themselves, 0.50 in nvfp4
# (117 gain, 0.49 with those), 0.88 in mxfp8 (96, 0.79).
BY_FAR = 0.7

Chosen = Mapping[str, Solution]  # by group
Alone = Callable[[Mapping[str, Sequence[Solution]]], Mapping[str, Sequence[Divergence]]]


@dataclass(frozen=True)
class Gated:
    """kept: of every group; dropped: what it was before, of those that are rounded instead;
    divergence: the model's, None where nothing was measured, as all was rounded to nearest.
    """

    kept: Chosen
    dropped: Chosen = field(default_factory=dict)
    divergence: Divergence | None = None
    said: str = ""


def gated(chosen: Chosen, measure: Measure, alone: Alone, budget: str = "") -> Gated:
    """`chosen`, or the part of it that the model is better for; its bits are no more, nor is its
    time. `alone` measures the model with one group quantized, in each way; under a budget that the
    model is held to nothing that loses more than `chosen` is kept.
    """
    clearly = 1.0 if budget in HELD_TO else CLEARLY
    rounded = {group: solution.plain or solution for group, solution in chosen.items()}
    pairs = {g: [s, rounded[g]] for g, s in chosen.items() if s != rounded[g]}
    if not pairs:
        return Gated(chosen)
    plans = {"all rounded to nearest": rounded, "all as chosen": chosen}
    measured = {name: measure(plan) for name, plan in plans.items()}

    def cost(divergence: Divergence) -> float:
        return cost_of(divergence, budget)

    plain, as_chosen = map(cost, measured.values())
    if as_chosen >= BY_FAR * plain:
        gaining = {g for g, (own, other) in alone(pairs).items() if cost(own) < cost(other)}
        name = f"the {len(gaining)} of {len(pairs)} groups as chosen that gain alone"
        plans[name] = {g: (chosen if g in gaining else rounded)[g] for g in chosen}
        measured[name] = measure(plans[name])
    kept = next(iter(plans))
    for name, found in measured.items():
        if cost(found) < clearly * cost(measured[kept]):
            kept = name
    said = compared({f"with {name}": found for name, found in measured.items()}, budget)
    dropped = {g: s for g, s in chosen.items() if plans[kept][g] != s}
    return Gated(plans[kept], dropped, measured[kept], f"{kept}: {said}")
