"""The plan: one option for every group under a budget, believed once the whole model was measured.

Options are a group's solutions, and float where that was offered. Errors are assumed to add up for
the exact program (assignment.py) and for nothing else: its plan is measured beside every uniform
one that keeps within the budget, and then options that the program held for nearly as good are
tried in their place, one after the other, each kept only where the model gets better. The best of
so many on one sample looks better there than it is, so one format everywhere stays where a mixture
does not beat it clearly."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lbcompiler.config import FLOAT
from lbcompiler.decisions.assignment import assign, fits, front, total
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.measure import FLOOR, Divergence
from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named

FLOAT_BITS = 32.0
TRIES = 16  # of the greedy check
NEAR = 1.5  # times the chosen option's cost: what the check tries
# Times what one format everywhere costs: what a mixture must cost at most. On four windows of
# tiny_lm the best of twenty mixtures cost 0.94 times as much, and 1.02 times on 32 others.
MIXED = 0.9
ROUNDS = 8  # of plans whose measured value says what the next one may cost
POINTS = 9  # of the front


@dataclass(frozen=True)
class Option:
    """solution None: float. cost: measured alone; load: what the budget counts, summed over the
    group; bits: of a weight's element.
    """

    solution: Solution | None
    cost: float
    load: float
    bits: float = FLOAT_BITS

    @property
    def format(self) -> str:
        return FLOAT if self.solution is None else self.solution.choice.weight_format

    @property
    def is_split(self) -> bool:
        return self.solution is not None and self.solution.taken > 0


@dataclass(frozen=True)
class Plan:
    """A measured choice, by group."""

    chosen: Mapping[str, Option]
    effective_bits: float
    divergence: Divergence


Measure = Callable[[Mapping[str, Solution]], Divergence]
Value = Callable[[Divergence], float]
Passed = Callable[["Plan"], "Plan"]  # what the gate leaves of a plan, measured


@dataclass(frozen=True)
class Table:
    """options: by group; elements: of its weights. All groups have their formats in one order."""

    options: Mapping[str, Sequence[Option]]
    elements: Mapping[str, int]

    @property
    def costs(self) -> list[list[float]]:
        return [[option.cost for option in row] for row in self.options.values()]

    @property
    def loads(self) -> list[list[float]]:
        return [[option.load for option in row] for row in self.options.values()]

    @property
    def weight_bits(self) -> list[list[float]]:
        return [
            [option.bits * self.elements[group] for option in row]
            for group, row in self.options.items()
        ]

    def plan(self, chosen: Mapping[str, Option], divergence: Divergence) -> Plan:
        """Of options by group, of the table or not."""
        bits = sum(option.bits * self.elements[group] for group, option in chosen.items())
        return Plan(chosen, bits / max(1, sum(self.elements.values())), divergence)

    def chosen(self, picked: Sequence[int]) -> dict[str, Option]:
        rows = zip(self.options.items(), picked, strict=True)
        return {group: row[i] for (group, row), i in rows}

    @property
    def uniform(self) -> list[list[int]]:
        """The plans of one format everywhere."""
        count = min(map(len, self.options.values()))
        return [[i] * len(self.options) for i in range(count)]


def bits_of(fmt: str) -> float:
    """Of an element in a format, scales included; "float32" is one of them."""
    return FLOAT_BITS if fmt == FLOAT else format_named(fmt).bits_per_element


class Planner:
    """Finds plans in a table; every plan is measured once. What `passed` makes of one is asked only
    where no plan keeps a limit as it is.
    """

    def __init__(self, table: Table, measure: Measure, passed: Passed = lambda plan: plan) -> None:
        self.table, self._measure, self._passed = table, measure, passed
        self._known: dict[tuple[int, ...], Divergence] = {}

    def measured(self, picked: Sequence[int]) -> Plan:
        key = tuple(picked)
        if key not in self._known:
            chosen = self.table.chosen(picked)
            solutions = {g: o.solution for g, o in chosen.items() if o.solution is not None}
            self._known[key] = self._measure(solutions)
        return self.table.plan(self.table.chosen(picked), self._known[key])

    def cost(self, picked: Sequence[int]) -> float:
        return self.measured(picked).divergence.cost

    def within(self, limit: float, said: float, unit: str, whole: float) -> Plan:
        """The best that was measured of the plans whose load is at most `limit`: `said` units of
        `whole` each.
        """
        loads = self.table.loads
        picked = assign(self.table.costs, loads, limit)
        if picked is None:
            nearest = sum(min(row) for row in loads) / whole
            raise ConfigError(
                f"no choice of formats keeps within {said:g} {unit}: the least that these "
                f"formats can do is {nearest:.4g}; allow that much, or offer smaller formats"
            )
        allowed = [plan for plan in self.table.uniform if fits(total(loads, plan), limit)]
        best = self._refined(min([picked, *allowed], key=self.cost), limit)
        uniform = min(allowed, key=self.cost, default=best)
        return self.measured(best if self.cost(best) < MIXED * self.cost(uniform) else uniform)

    def _refined(self, picked: list[int], limit: float) -> list[int]:
        """The greedy check: near ties of the costliest groups, in the whole model."""
        rows = list(self.table.options.values())
        order = sorted(range(len(rows)), key=lambda g: -rows[g][picked[g]].cost)
        best, least, tries = picked, self.cost(picked), 0
        for g in order:
            now = rows[g][best[g]]
            for i, option in enumerate(rows[g]):
                trial = [*best[:g], i, *best[g + 1 :]]
                near = option.cost <= NEAR * now.cost
                if i == best[g] or not near or not fits(total(self.table.loads, trial), limit):
                    continue
                if tries == TRIES:
                    return best
                tries += 1
                if (cost := self.cost(trial)) < least:
                    best, least = trial, cost
        return best

    def cheapest(self, limit: float, value: Value, said: Callable[[float], str]) -> Plan:
        """The plan of fewest bits, of those measured, whose measured `value` is at most `limit`; if
        there is none, of those that the gate brings there. `said`: a value with its unit.

        Costs may be in any unit: what the next plan may cost is scaled by what the last was
        measured to reach, between a cost that kept the limit and one that did not."""
        bits, costs = self.table.weight_bits, self.table.costs
        low, high, allowed = 0.0, sum(map(max, costs)), self._start(limit, value)
        for _ in range(ROUNDS if allowed else 0):
            allowed = allowed if low < allowed < high else math.sqrt(low * high) or high
            picked = assign(bits, costs, allowed)
            if picked is None:
                low, allowed = allowed, 2 * allowed
                continue
            reached = value(self.measured(picked).divergence)
            low, high = (allowed, high) if reached <= limit else (low, allowed)
            allowed *= limit / max(reached, FLOOR)
        plans = sorted(
            map(self.measured, self._known), key=lambda p: (p.effective_bits, p.divergence.cost)
        )
        best = math.inf
        for found in (plans, map(self._passed, plans)):
            for plan, left in zip(plans, found, strict=True):
                if (reached := value(left.divergence)) <= limit:
                    return plan
                best = min(best, reached)
        raise ConfigError(
            f"no choice of these formats reaches {said(limit)}: the best of them gives "
            f"{said(best)}; ask for a little worse than that, or offer wider formats "
            "(--formats ...,mxint8,float)"
        )

    def _start(self, limit: float, value: Value) -> float:
        """The cost that would reach `limit`, by the measured plan that comes nearest; 0 where no
        plan costs anything. Whatever else is to be measured of the table is measured first."""
        costs = self.table.costs
        value(self.measured([row.index(min(row)) for row in costs]).divergence)
        self.front()
        known = [(total(costs, picked), value(found)) for picked, found in self._known.items()]
        usable = [(cost, reached) for cost, reached in known if cost > 0 and reached > 0]
        if not usable:
            return 0.0
        cost, reached = min(usable, key=lambda pair: abs(math.log(pair[1] / limit)))
        return cost * limit / reached

    def front(self) -> list[Plan]:
        """Measured plans from few bits to many, each better than those before it."""
        picked = front(self.table.costs, self.table.weight_bits, POINTS) + self.table.uniform
        plans = sorted(
            map(self.measured, picked), key=lambda p: (p.effective_bits, p.divergence.cost)
        )
        best: list[Plan] = []
        for plan in plans:
            if not best or plan.divergence.cost < best[-1].divergence.cost:
                best.append(plan)
        return best
