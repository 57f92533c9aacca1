"""Which groups are smoothed, and how: the first thing decided, because it changes what all later
decisions are about. Judged in the first candidate format, the one that was named first."""

from collections.abc import Mapping

from lbcompiler.calibration.collect import Statistics
from lbcompiler.calibration.segments import Group
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.ir.model import Array
from lbcompiler.ir.smoothing import Folding, Smoothing
from lbcompiler.passes.smooth import can_fold
from lbcompiler.pipeline import Progress
from lbcompiler.smoothing import Rounding, search


def smoothings(
    simulator: Simulator,
    decided: Mapping[str, tuple[str, ...]],
    statistics: Statistics,
    rounding: Rounding,
    state: State,
    name: str,
    progress: Progress,
) -> dict[str, Smoothing]:
    """By layer, of those groups whose layers are all decided and whose error a smoothing lowers.

    Kept as `name` in the state folder."""
    kept, methods = state.load(name), state.load_record(name)
    if kept is None or methods is None:
        kept, methods = _searched(simulator, decided, statistics, rounding, progress)
        state.save(name, kept)
        state.save_record(name, methods)
    return {
        layer: Smoothing(kept[f"{group}/scale"], kept.get(f"{group}/shift"), method)
        for group, method in methods.items()
        for layer in decided[group]
    }


def _searched(
    simulator: Simulator,
    decided: Mapping[str, tuple[str, ...]],
    statistics: Statistics,
    rounding: Rounding,
    progress: Progress,
) -> tuple[dict[str, Array], dict[str, str]]:
    foldings = can_fold(simulator.model.module)
    arrays: dict[str, Array] = {}
    methods: dict[str, str] = {}
    whole = [g for g in simulator.groups if decided.get(g.name) == g.layers]
    for done, group in enumerate(whole):
        progress("smooth", done, len(whole))
        found = _best(simulator, group, statistics, rounding, foldings)
        if found is None:
            continue
        methods[group.name], arrays[f"{group.name}/scale"] = found.method, found.scale
        if found.shift is not None:
            arrays[f"{group.name}/shift"] = found.shift
    progress("smooth", len(whole), len(whole))
    return arrays, methods


def _best(
    simulator: Simulator,
    group: Group,
    statistics: Statistics,
    rounding: Rounding,
    foldings: Mapping[str, Folding],
) -> Smoothing | None:
    known = statistics[group.name]
    weights = [simulator.weight(layer) for layer in group.layers]
    allowed = foldings[group.name]
    return search(known.sample, weights, rounding, allowed, known.minimum, known.maximum)
