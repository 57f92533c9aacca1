"""One option for every group, the cheapest that keep within a budget: an exact 0-1 program.

    minimize  sum_g sum_o cost[g][o] x[g][o]
    s.t.      sum_o x[g][o] = 1 for every g,  sum_g sum_o load[g][o] x[g][o] <= limit

Solved by HiGHS through `scipy.optimize.milp`. Cost and load may be anything that adds up: errors,
bits, seconds."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Table = Sequence[Sequence[float]]  # [group][option]

GAP = 1e-6  # of the optimum: beyond what measured costs mean
ROUNDING = 1e-9  # of the limit: a plan that meets it exactly is not lost to a last bit


def assign(costs: Table, loads: Table, limit: float) -> list[int] | None:
    """The option of each group; None where even the lightest options are too much.

    Infinite costs or loads forbid an option; of equal plans the lighter is taken."""
    lightest = sum(min(row) for row in loads)
    if not fits(lightest, limit):
        return None
    cost, load = (np.array(list(chain.from_iterable(table)), float) for table in (costs, loads))
    allowed = np.isfinite(cost) & np.isfinite(load)
    sizes = [len(row) for row in costs]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    if len(set(owner[allowed])) < len(sizes):
        return None
    cost, load = np.where(allowed, cost, 0.0), np.where(allowed, load, 0.0)
    scale = max(np.abs(cost).max(), 1e-300)
    unit = min(1.0, limit) if limit > 0 else 1.0  # HiGHS keeps a bound within 1e-6, in its unit
    tie = GAP * load / max(load.max(), 1e-300) / max(1, len(sizes))
    one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    with _silent_stdout():
        found = milp(
            cost / scale + tie,
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, allowed.astype(float)),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(load[None] / unit, -np.inf, _most(limit) / unit),
            ],
            options={"mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    chosen = np.split(found.x, np.cumsum(sizes)[:-1])
    return [int(row.argmax()) for row in chosen]


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """HiGHS notes some of its steps on the process's stdout, which is where --json goes."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def fits(load: float, limit: float) -> bool:
    """Whether a load keeps within a limit."""
    return load <= _most(limit)


def _most(limit: float) -> float:
    return limit + ROUNDING * abs(limit)


def total(table: Table, chosen: Sequence[int]) -> float:
    """Of the chosen options."""
    return float(sum(row[option] for row, option in zip(table, chosen, strict=True)))


def front(costs: Table, loads: Table, points: int) -> list[list[int]]:
    """Plans for limits spread evenly between the lightest load and that of the least cost, the
    lightest first; each costs less than the one before.
    """
    lightest = [int(np.argmin(row)) for row in loads]
    best = [int(np.lexsort((load, cost))[0]) for cost, load in zip(costs, loads, strict=True)]
    limits = np.linspace(total(loads, lightest), total(loads, best), points)
    plans: list[list[int]] = []
    for limit in limits:
        plan = assign(costs, loads, float(limit))
        if plan is not None and (not plans or total(costs, plan) < total(costs, plans[-1])):
            plans.append(plan)
    return plans
