"""Plans of the fewest bits within a measured limit, whatever unit the costs are in."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from lbcompiler.decisions.budgets import within_budget
from lbcompiler.decisions.candidates import Choice, Solution
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.plan import Option, Plan, Planner, Table, bits_of
from lbcompiler.errors import ConfigError

FORMATS = ("nvfp4", "mxfp6", "mxint8")
GROUPS = 6
LOSSES = np.random.default_rng(3).uniform(0.2, 2.0, (GROUPS, 1)) * [[0.1, 0.02, 0.001]]  # nats
LIMITS = [0.5, 0.2, 0.05, 0.01]


def solution(fmt: str, loss: float) -> Solution:
    return Solution(Choice(fmt, fmt, "", "floor"), loss)


def table(unit: Callable[[float], float]) -> Table:
    """Each solution's error is what it really costs; an option's cost says it in some unit."""
    options = {
        f"group {g}": [
            Option(solution(fmt, float(loss)), unit(float(loss)), bits_of(fmt), bits_of(fmt))
            for fmt, loss in zip(FORMATS, row, strict=True)
        ]
        for g, row in enumerate(LOSSES)
    }
    return Table(options, dict.fromkeys(options, 1))


def measured(chosen: Mapping[str, Solution]) -> Divergence:
    kl = sum(s.error for s in chosen.values())
    return Divergence(kl / 7, kl)


def fewest(limit: float) -> float:
    """Bits of the best of all plans, by trying them."""
    bits = np.array([bits_of(fmt) for fmt in FORMATS])
    return min(
        bits[list(plan)].mean()
        for plan in product(range(len(FORMATS)), repeat=GROUPS)
        if LOSSES[range(GROUPS), plan].sum() <= limit
    )


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("scale", [1e-6, 0.001, 1.0, 1000.0])
def test_the_unit_of_costs_does_not_matter(limit: float, scale: float) -> None:
    plan = within_budget(Planner(table(lambda loss: scale * loss), measured), "max_kl", limit)
    assert plan.divergence.kl is not None
    assert plan.divergence.kl <= limit
    assert plan.effective_bits == pytest.approx(fewest(limit))


def test_a_plan_that_was_measured_is_not_forgotten() -> None:
    """Costs that say the opposite of the truth never lead to the uniform plan that fits."""
    limit = float(LOSSES[:, 1].sum())
    plan = within_budget(Planner(table(lambda loss: 1 / loss), measured), "max_kl", limit)
    assert plan.effective_bits <= bits_of(FORMATS[1])


def test_a_limit_beyond_all_says_the_best() -> None:
    best = float(LOSSES[:, -1].sum())
    planner = Planner(table(lambda loss: 1000 * loss), measured)
    with pytest.raises(ConfigError, match=rf"best of them gives a KL of {best:.4g} nats a token"):
        within_budget(planner, "max_kl", best / 2)


@pytest.mark.parametrize(("gain", "is_mixed"), [(0.05, False), (0.2, True)])
def test_one_format_everywhere_stays_unless_a_mixture_is_clearly_better(
    gain: float, is_mixed: bool
) -> None:
    """All options have as many bits, so the budget allows all of them; the model says what the
    sample says of a mixture.
    """
    options = {
        f"group {g}": [Option(solution(fmt, 1.0), cost, 4.5, 4.5) for fmt, cost in costs.items()]
        for g, costs in enumerate([{"nvfp4": 1.0, "nvint4": 1.1}, {"nvfp4": 1.1, "nvint4": 1.0}])
    }

    def of_model(chosen: Mapping[str, Solution]) -> Divergence:
        is_one = len({s.choice.name for s in chosen.values()}) == 1
        kl = 1.0 if is_one else 1.0 - gain
        return Divergence(kl / 7, kl)

    planner = Planner(Table(options, dict.fromkeys(options, 1)), of_model)
    plan = within_budget(planner, "effective_bits", 4.5)
    assert (len({option.format for option in plan.chosen.values()}) > 1) == is_mixed


def test_where_no_plan_keeps_a_limit_those_that_the_gate_brings_there_are_looked_at() -> None:
    asked: list[Plan] = []

    def passed(plan: Plan) -> Plan:
        asked.append(plan)
        kl = plan.divergence.kl
        assert kl is not None
        return replace(plan, divergence=Divergence(kl / 14, kl / 2))

    best = float(LOSSES[:, -1].sum())
    planner = Planner(table(lambda loss: loss), measured, passed)
    within_budget(planner, "max_kl", best)
    assert not asked
    plan = within_budget(planner, "max_kl", 0.9 * best)
    assert plan.divergence.kl == pytest.approx(best)
    assert [p.effective_bits for p in asked] == sorted(p.effective_bits for p in asked)
    with pytest.raises(
        ConfigError, match=rf"reaches a KL of {0.4 * best:.4g}.*{best / 2:.4g} nats"
    ):
        within_budget(planner, "max_kl", 0.4 * best)
