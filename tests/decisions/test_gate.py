"""The gate's three answers, by what a made-up model loses."""

from collections.abc import Mapping, Sequence

import pytest

from lbcompiler.decisions.candidates import Choice, Solution
from lbcompiler.decisions.gate import Gated, gated
from lbcompiler.decisions.measure import Divergence

ROUNDED = Solution(Choice("mxint8", "mxint8", "rceil", "rceil"), error=0.2)
SOLVED = Solution(Choice("mxint8", "mxint8", "mse", "rceil", "gptq"), 0.1, ROUNDED)
CHOSEN = {"a": SOLVED, "b": SOLVED, "plain": ROUNDED}


def passed(
    chosen: Mapping[str, Solution], gains: Mapping[str, float], together: float, budget: str = ""
) -> Gated:
    """Each group's own solution changes the loss of 1 by its gain, two of them by `together`."""

    def measure(plan: Mapping[str, Solution]) -> Divergence:
        solved = [group for group, solution in plan.items() if solution == SOLVED]
        gain = together if len(solved) > 1 else sum(gains[group] for group in solved)
        return divergence(1.0 - gain)

    def alone(pairs: Mapping[str, Sequence[Solution]]) -> dict[str, list[Divergence]]:
        assert all(pair == [SOLVED, ROUNDED] for pair in pairs.values())
        return {group: [divergence(1.0 - gains[group]), divergence(1.0)] for group in pairs}

    return gated(chosen, measure, alone, budget)


def divergence(kl: float) -> Divergence:
    return Divergence(kl / 10, kl)


def test_what_the_model_gains_from_is_kept() -> None:
    found = passed(CHOSEN, {"a": 0.1, "b": -0.1}, together=0.2)  # of 1, so that parts are measured
    assert found.kept == CHOSEN
    assert not found.dropped
    assert found.divergence == divergence(0.8)
    assert found.said == (
        "all as chosen: the model's KL in nats a token is 1 with all rounded to nearest, "
        "0.8 with all as chosen, 0.9 with the 1 of 2 groups as chosen that gain alone"
    )


@pytest.mark.parametrize("together", [-0.3, 0.2])
def test_a_group_that_costs_the_model_more_is_dropped(together: float) -> None:
    found = passed(CHOSEN, {"a": 0.4, "b": -0.4}, together)
    assert found.kept == CHOSEN | {"b": ROUNDED}
    assert found.dropped == {"b": SOLVED}
    assert found.divergence == divergence(0.6)
    assert found.said.startswith("the 1 of 2 groups as chosen that gain alone: ")


@pytest.mark.parametrize("gains", [{"a": -0.1, "b": -0.1}, {"a": 0.1, "b": 0.1}])
@pytest.mark.parametrize("together", [-0.5, 0.04])
def test_all_is_dropped_where_no_part_helps_clearly(
    gains: dict[str, float], together: float
) -> None:
    found = passed(CHOSEN, gains, together)
    assert found.kept == dict.fromkeys(CHOSEN, ROUNDED)
    assert found.dropped == {"a": SOLVED, "b": SOLVED}
    assert found.divergence == divergence(1.0)
    assert found.said.startswith("all rounded to nearest: ")


def test_nothing_worse_than_what_was_chosen_is_kept_where_a_budget_holds_the_model() -> None:
    found = passed(CHOSEN, {"a": -0.1, "b": -0.1}, together=0.04, budget="max_kl")
    assert found.kept == CHOSEN
    assert found.divergence == divergence(0.96)


def test_parts_are_not_measured_where_all_gain_by_far() -> None:
    found = passed(CHOSEN, {}, together=0.4)
    assert found.kept == CHOSEN
    assert found.said == (
        "all as chosen: the model's KL in nats a token is 1 with all rounded to nearest, "
        "0.6 with all as chosen"
    )


def test_under_a_budget_of_qsnr_losses_are_said_as_that() -> None:
    found = passed(CHOSEN, {}, together=0.9, budget="min_qsnr")
    assert found.said == (
        "all as chosen: the model's QSNR in dB is 10 with all rounded to nearest, "
        "20 with all as chosen"
    )


def test_plain_rounding_is_not_measured() -> None:
    chosen = {"plain": ROUNDED}
    assert passed(chosen, {}, together=0.0) == Gated(chosen)
