"""Whether the residual stream is rotated: for all its linears or for none, as it is one stream.

Judged in the first candidate format, all groups rounded to nearest with the best rotation of their
own input that may be tried, by the model's output: errors of layers do not tell, because the noise
of a layer that writes loud channels reaches the quiet ones once they are mixed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lbcompiler.calibration.collect import Statistics
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.calibration.state import State
from lbcompiler.data import Feeds
from lbcompiler.decisions.candidates import GATE, GroupProblem, Options, Solution, solve
from lbcompiler.decisions.cut import OFF
from lbcompiler.decisions.measure import Measurement
from lbcompiler.errors import ConfigError
from lbcompiler.formats import Quantized
from lbcompiler.ir.constants import constant_of
from lbcompiler.ir.model import Array
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes.rotate_residual import RotateResidual, stream_of
from lbcompiler.pipeline import Progress, run

LARGEST = 128  # of the blocks


@dataclass(frozen=True)
class Residual:
    """Whether it is rotated, and why it is or is not."""

    rotation: Rotation | None
    reason: str

    @property
    def said(self) -> str:
        """For the record, "" where nobody asked."""
        if not self.reason:
            return ""
        return f"{'not rotated' if self.rotation is None else 'rotated'}: {self.reason}"


def remembered(state: State, name: str, seed: int | None, find: Callable[[], Residual]) -> Residual:
    """What record `name` of the state says, else what is found now and kept there."""
    known = state.load_record(name)
    if known is None:
        found = find()
        size = 0 if found.rotation is None else found.rotation.size
        known = {"size": size, "reason": found.reason}
        state.save_record(name, known)
    rotation = Rotation(int(known["size"]), seed) if known["size"] else None
    return Residual(rotation, str(known["reason"]))


def residual_rotation(
    simulator: Simulator,
    parts: Mapping[str, Sequence[str]],
    statistics: Statistics,
    formats: tuple[str, str],
    options: Options,
    batches: Sequence[Feeds],
    progress: Progress,
) -> Residual:
    """Not rotated where the model has no stream that could be, and where it does not help."""
    model = simulator.model
    try:
        stream = stream_of(model.module)
    except ConfigError as error:
        return Residual(None, str(error))
    size = min(LARGEST, stream.width & -stream.width)
    layers = stream.layers()
    if size < 2:
        return Residual(None, f"the residual stream has an odd width, {stream.width}")
    if not any(layer in layers for part in parts.values() for layer in part):
        return Residual(None, "no layer that is quantized reads the residual stream")
    rotation = Rotation(size, options.seed)
    options = replace(options, quantizer="rtn", rules=(), outliers=OFF)
    turned = Simulator(run((RotateResidual(rotation),), model))
    costs = []
    for step, (seen_by, turns) in enumerate(((simulator, None), (turned, rotation))):
        progress("residual", step, 2)
        solutions = {}
        for group, part in parts.items():
            x, gain = statistics[group].sample, layers.get(part[0])
            if turns is not None and gain is not None:
                x = _as_read(x, constant_of(gain, model.weights), turns)
            problem = GroupProblem(tuple(map(seen_by.weight, part)), None, x)
            solutions[group] = solve(problem, [formats], options)[0]
        measurement = Measurement(seen_by, batches, parts, _own_weights, options.seed)
        costs.append(measurement.plan(solutions).cost)
    progress("residual", 2, 2)
    return Residual(
        rotation if costs[1] < GATE * costs[0] else None,
        f"the model loses {costs[0]:.3g} as it is and {costs[1]:.3g} with its residual stream "
        f"rotated in blocks of {size}",
    )


def _own_weights(_group: str, solution: Solution) -> Sequence[Quantized]:
    return solution.weights


def _as_read(x: Array, gain: Array | None, rotation: Rotation) -> Array:
    """What a linear reads once the stream is rotated: of a norm without its gain."""
    assert gain is not None  # it is known, or there is no stream
    bare = np.divide(x, gain, out=np.zeros_like(x), where=gain != 0)
    return rotation.apply(bare)
