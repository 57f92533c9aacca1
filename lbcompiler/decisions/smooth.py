"""Which groups are smoothed, and how: the first thing decided, because it changes what all later
decisions are about. Judged in the first candidate format, the one that was named first: each group
by its own output, then all together by the model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lbcompiler.calibration.collect import Statistics
from lbcompiler.calibration.segments import Group
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.config import WEIGHT_ONLY
from lbcompiler.decisions.gate import CLEARLY
from lbcompiler.decisions.losses import compared
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.rounded import RoundedModel
from lbcompiler.formats import format_named
from lbcompiler.ir.model import Array
from lbcompiler.ir.smoothing import Folding, Smoothing
from lbcompiler.passes.smooth import Smooth, can_fold
from lbcompiler.pipeline import Progress, run
from lbcompiler.smoothing import Rounding, search


@dataclass(frozen=True)
class Smoothed:
    """by_layer: of those groups whose layers are all decided and whose error a smoothing lowers,
    if the model is better for them; said: what was measured of it.
    """

    by_layer: Mapping[str, Smoothing]
    said: str


def smoothed(
    simulator: Simulator,
    statistics: Statistics,
    rounded: RoundedModel,
    plain: Divergence | None,
    name: str,
    progress: Progress,
) -> Smoothed:
    """Kept as `name` in the state folder. plain: what the model loses as it is, all groups rounded
    to nearest, where that is known.
    """
    state = rounded.state
    kept, record = state.load(name), state.load_record(name)
    if kept is None or record is None:
        kept, methods = _searched(simulator, statistics, rounded, progress)
        said = "not smoothed: no layer gains from it"
        if found := _by_layer(kept, methods, rounded.parts):
            smooth = _loss(simulator, statistics, rounded, found, name, progress)
            plain = plain or _loss(simulator, statistics, rounded, {}, name, progress)
            helps = smooth.cost < CLEARLY * plain.cost
            methods = methods if helps else {}
            said = f"{'smoothed' if helps else 'not smoothed'}: "
            said += compared({"as it is": plain, "smoothed": smooth})
        record = {"methods": methods, "said": said}
        state.save(name, kept)
        state.save_record(name, record)
    state.remove_folder(name)  # also what a kill before this line left
    return Smoothed(_by_layer(kept, record["methods"], rounded.parts), record["said"])


def _by_layer(
    kept: Mapping[str, Array], methods: Mapping[str, str], parts: Mapping[str, Sequence[str]]
) -> dict[str, Smoothing]:
    return {
        layer: Smoothing(kept[f"{group}/scale"], kept.get(f"{group}/shift"), method)
        for group, method in methods.items()
        for layer in parts[group]
    }


def _loss(
    simulator: Simulator,
    statistics: Statistics,
    rounded: RoundedModel,
    by_layer: Mapping[str, Smoothing],
    name: str,
    progress: Progress,
) -> Divergence:
    """What the model loses with these smoothings, all groups rounded to nearest."""
    held = simulator
    if by_layer:
        held = Simulator(run((Smooth(by_layer),), simulator.model))

    def sample(group: str) -> Array:
        x, smoothing = statistics[group].sample, by_layer.get(rounded.parts[group][0])
        return x if smoothing is None else smoothing.activation(x)

    def told(_stage: str, done: int, total: int) -> None:
        progress("smooth", done, total)

    return rounded.loss(held, sample, f"{name}/{'smooth' if by_layer else 'plain'}", told)


def _searched(
    simulator: Simulator, statistics: Statistics, rounded: RoundedModel, progress: Progress
) -> tuple[dict[str, Array], dict[str, str]]:
    """Scales and shifts as arrays, and the method of each group that is smoothed."""
    weight, act = rounded.formats
    rounding = Rounding(format_named(weight), None if act == WEIGHT_ONLY else format_named(act))
    foldings = can_fold(simulator.model.module)
    arrays: dict[str, Array] = {}
    methods: dict[str, str] = {}
    whole = [g for g in simulator.groups if tuple(rounded.parts.get(g.name, ())) == g.layers]
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
