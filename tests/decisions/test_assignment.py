from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcompiler.decisions.assignment import GAP, assign, front, total

TABLES = st.integers(1, 4).flatmap(
    lambda options: st.lists(
        st.lists(
            st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=options, max_size=options
        ),
        min_size=1,
        max_size=4,
    )
)


def split(table: list[list[tuple[int, int]]]) -> tuple[list[list[float]], list[list[float]]]:
    costs = [[float(cost) for cost, _ in row] for row in table]
    return costs, [[float(load) for _, load in row] for row in table]


@given(TABLES, st.integers(0, 30))
def test_no_choice_within_the_limit_is_cheaper(
    table: list[list[tuple[int, int]]], limit: int
) -> None:
    costs, loads = split(table)
    picked = assign(costs, loads, limit)
    every = product(*(range(len(row)) for row in table))
    allowed = [total(costs, plan) for plan in every if total(loads, plan) <= limit]
    if not allowed:
        assert picked is None
        return
    assert picked is not None
    assert total(loads, picked) <= limit
    # the tie-breaker may cost GAP of the largest cost
    assert total(costs, picked) <= min(allowed) + 2 * GAP * max(map(max, costs))


def test_of_equal_plans_the_lighter_is_taken() -> None:
    assert assign([[1.0, 1.0]], [[5.0, 2.0]], 9) == [1]


def test_what_is_infinite_is_forbidden() -> None:
    inf = float("inf")
    assert assign([[1.0, 0.0]], [[1.0, inf]], 10) == [0]
    assert assign([[inf, inf]], [[1.0, 1.0]], 10) is None


def test_a_limit_that_is_met_exactly_is_met() -> None:
    bits = [[4.5 * 999, 8.25 * 999], [4.5 * 1001, 8.25 * 1001]]
    assert assign([[1.0, 0.0], [1.0, 0.0]], bits, 4.5 * 2000) == [0, 0]


def test_nothing_is_written_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    costs, loads = draw.random((60, 4)).tolist(), draw.random((60, 4)).tolist()
    assert assign(costs, loads, 20.0) is not None
    assert capfd.readouterr().out == ""


def test_the_front_falls() -> None:
    costs = [[3.0, 1.0, 0.0], [9.0, 2.0, 0.0]]
    loads = [[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]
    plans = front(costs, loads, 9)
    assert plans[0] == [0, 0]
    assert plans[-1] == [2, 2]
    falling = [total(costs, plan) for plan in plans]
    assert falling == sorted(falling, reverse=True)
