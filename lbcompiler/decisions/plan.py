"""The plan: one option for every group under a budget, believed once the whole model was measured.

Options are a group's solutions, and float where that was offered. Errors are assumed to add up for
the exact program (assignment.py) and for nothing else: its plan is measured beside every uniform
one that keeps within the budget, and then options that the program held for nearly as good are
tried in their place, one after the other, each kept only where the model gets better."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lbcompiler.decisions.assignment import assign, front, total
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.measure import Divergence
from lbcompiler.errors import ConfigError
from lbcompiler.formats import format_named

FLOAT_BITS = 32.0
FLOAT = "float32"
TRIES = 16  # of the greedy check
NEAR = 1.5  # times the chosen option's cost: what the check tries
TIGHTER = 0.7  # of a limit that the measured model did not keep, at least
ROUNDS = 8  # of tightening
POINTS = 9  # of the front


@dataclass(frozen=True)
class Option:
    """solution None: float. bits: of a weight's element; cost: measured alone; load: what the
    budget counts, summed over the group."""

    solution: Solution | None
    bits: float
    cost: float
    load: float

    @property
    def format(self) -> str:
        return FLOAT if self.solution is None else self.solution.choice.weight_format


@dataclass(frozen=True)
class Plan:
    """chosen: by group; None is float."""

    chosen: Mapping[str, Solution | None]
    effective_bits: float
    divergence: Divergence | None = None

    @property
    def formats(self) -> dict[str, str]:
        return {
            group: FLOAT if solution is None else solution.choice.weight_format
            for group, solution in self.chosen.items()
        }


Measure = Callable[[Mapping[str, Solution]], Divergence]
Value = Callable[[Divergence], float]


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

    def plan(self, picked: Sequence[int]) -> Plan:
        rows = zip(self.options.items(), picked, strict=True)
        bits = total(self.weight_bits, picked) / max(1, sum(self.elements.values()))
        return Plan({group: row[i].solution for (group, row), i in rows}, bits)

    def uniform(self, fmt: str) -> list[int] | None:
        """The plan of one format everywhere; None where a group cannot have it."""
        picked = [
            [o.format for o in row].index(fmt) if fmt in [o.format for o in row] else -1
            for row in self.options.values()
        ]
        return None if -1 in picked else picked

    @property
    def formats(self) -> list[str]:
        return list(dict.fromkeys(o.format for row in self.options.values() for o in row))


def bits_of(solution: Solution | None) -> float:
    return (
        FLOAT_BITS
        if solution is None
        else (format_named(solution.choice.weight_format).bits_per_element)
    )


class Planner:
    """Finds plans in a table; every plan is measured once."""

    def __init__(self, table: Table, measure: Measure) -> None:
        self.table, self._measure = table, measure
        self._known: dict[tuple[int, ...], Divergence] = {}

    def measured(self, picked: Sequence[int]) -> Plan:
        plan, key = self.table.plan(picked), tuple(picked)
        if key not in self._known:
            solutions = {g: s for g, s in plan.chosen.items() if s is not None}
            self._known[key] = self._measure(solutions)
        return replace(plan, divergence=self._known[key])

    def cost(self, picked: Sequence[int]) -> float:
        divergence = self.measured(picked).divergence
        assert divergence is not None
        return divergence.cost

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
        pool = [picked]
        for fmt in self.table.formats:
            uniform = self.table.uniform(fmt)
            if uniform is not None and total(loads, uniform) <= limit * (1 + 1e-9):
                pool.append(uniform)
        best = min(pool, key=self.cost)
        return self.measured(self._refined(best, limit))

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
                if i == best[g] or not near or total(self.table.loads, trial) > limit * (1 + 1e-9):
                    continue
                if tries == TRIES:
                    return best
                tries += 1
                if (cost := self.cost(trial)) < least:
                    best, least = trial, cost
        return best

    def cheapest(self, limit: float, value: Value, unit: str) -> Plan:
        """The plan of fewest bits whose measured `value` is at most `limit`."""
        bits, costs, allowed = self.table.weight_bits, self.table.costs, limit
        for _ in range(ROUNDS):
            picked = assign(bits, costs, allowed)
            if picked is None:
                break
            plan = self.measured(picked)
            assert plan.divergence is not None
            reached = value(plan.divergence)
            if reached <= limit:
                return plan
            allowed *= min(TIGHTER, limit / reached)
        least = self.measured([min(range(len(r)), key=r.__getitem__) for r in costs])
        assert least.divergence is not None
        if value(least.divergence) <= limit:
            return least
        raise ConfigError(
            f"no choice of these formats reaches {unit}: the best of them gives "
            f"{value(least.divergence):.4g} where {limit:.4g} was asked; ask for that, or offer "
            "wider formats (--formats ...,mxint8,float)"
        )

    def front(self) -> list[Plan]:
        """Measured plans from few bits to many, each better than those before it."""
        picked = front(self.table.costs, self.table.weight_bits, POINTS)
        picked += [u for f in self.table.formats if (u := self.table.uniform(f)) is not None]
        plans = sorted(map(self.measured, picked), key=lambda p: p.effective_bits)
        best: list[Plan] = []
        for plan in plans:
            assert plan.divergence is not None
            if best and best[-1].divergence is not None:
                if plan.divergence.cost >= best[-1].divergence.cost:
                    continue
                if plan.effective_bits == best[-1].effective_bits:
                    best.pop()
            best.append(plan)
        return best
