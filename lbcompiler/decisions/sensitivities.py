"""What the model loses to each group alone in each of its solutions.

| `--sensitivity` | a group's loss in a format |
|---|---|
| `output` | the error of its own layers, which is known already |
| `model` | the model's output with only that group quantized, measured |
| `fisher` | that error times what the model's output loses for an error of 1, by gradients |
"""

from collections.abc import Callable, Mapping, Sequence

from lbcompiler.calibration.state import State
from lbcompiler.decisions.candidate_store import Solutions
from lbcompiler.decisions.candidates import Solution
from lbcompiler.decisions.measure import Divergence, Measurement
from lbcompiler.errors import ConfigError
from lbcompiler.pipeline import Progress

Sensitivities = dict[str, list[Divergence]]  # by group, in the order of its solutions


def by_output(solutions: Solutions) -> Sensitivities:
    return {g: [Divergence(s.error) for s in row] for g, row in solutions.items()}


def by_measuring(
    solutions: Mapping[str, Sequence[Solution]],
    measurement: Measurement,
    state: State,
    name: str,
    progress: Progress,
) -> Sensitivities:
    """Those that record `name` of the state lacks are measured, and kept there group by group."""
    known = state.load_record(name) or {}
    missing = {
        group: list(
            {s.choice: s for s in row if s.choice.name not in known.get(group, {})}.values()
        )
        for group, row in solutions.items()
    }
    wanted = {group: row for group, row in missing.items() if row}
    done = len(solutions) - len(wanted)
    progress("sensitivity", done, len(solutions))
    for group, found in measurement.alone(wanted) if wanted else ():
        record = {s.choice.name: [d.noise, d.kl] for s, d in zip(wanted[group], found, strict=True)}
        known[group] = known.get(group, {}) | record
        state.save_record(name, known)
        done += 1
        progress("sensitivity", done, len(solutions))
    return {
        group: [Divergence(*known[group][s.choice.name]) for s in row]
        for group, row in solutions.items()
    }


def by_gradients(
    solutions: Solutions,
    parts: Mapping[str, Sequence[str]],
    gradients: Callable[[], dict[str, float]],
    state: State,
    name: str,
    progress: Progress,
) -> Sensitivities:
    """To second order. `parts` are the layers of a group; `gradients` says what each layer's error
    costs, and is asked where record `name` of the state does not say it.

    Raises ConfigError for a layer that it says nothing of."""
    known = state.load_record(name)
    if known is None:
        progress("sensitivity", 0, 1)
        known = gradients()
        state.save_record(name, known)
        progress("sensitivity", 1, 1)
    unknown = [layer for part in parts.values() for layer in part if layer not in known]
    if unknown:
        raise ConfigError(
            f"sensitivity fisher cannot judge layer {unknown[0]!r}: no gradient of the model's "
            "output reaches it; leave it in float with --exclude, or choose sensitivity model"
        )
    weights = {g: sum(known[layer] for layer in part) for g, part in parts.items()}
    return {g: [Divergence(weights[g] * s.error) for s in row] for g, row in solutions.items()}
