"""Whether the residual stream is rotated: for all its linears or for none, as it is one stream.

Judged in the first candidate format, all groups rounded to nearest with the best rotation of their
own input that may be tried, by the model's output: errors of layers do not tell, because the noise
of a layer that writes loud channels reaches the quiet ones once they are mixed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lbcompiler.calibration.collect import Statistics
from lbcompiler.calibration.simulator import Simulator
from lbcompiler.decisions.gate import CLEARLY
from lbcompiler.decisions.losses import compared
from lbcompiler.decisions.measure import Divergence
from lbcompiler.decisions.rounded import RoundedModel
from lbcompiler.errors import ConfigError
from lbcompiler.ir.constants import constant_of
from lbcompiler.ir.model import Array
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes.rotate_residual import RotateResidual, stream_of
from lbcompiler.pipeline import Progress, run

LARGEST = 128  # of the blocks


@dataclass(frozen=True)
class Residual:
    """Whether it is rotated, and why it is or is not; rounded: what the model then loses with all
    groups rounded to nearest, None where that was not measured.
    """

    rotation: Rotation | None
    reason: str
    rounded: Divergence | None = None

    @property
    def said(self) -> str:
        """For the record, "" where nobody asked."""
        if not self.reason:
            return ""
        return f"{'not rotated' if self.rotation is None else 'rotated'}: {self.reason}"


@dataclass(frozen=True)
class ResidualSearch:
    """Whether the stream of `simulator`'s model is rotated.

    What is measured on the way is kept under `name` in the state, and the codes go when it is
    settled."""

    simulator: Simulator
    statistics: Statistics
    rounded: RoundedModel
    name: str
    progress: Progress

    def settled(self) -> Residual:
        """As the record says, else as is found now and kept there."""
        state = self.rounded.state
        known = state.load_record(self.name)
        if known is None:
            found = self._found()
            size = 0 if found.rotation is None else found.rotation.size
            rounded = found.rounded
            lost = None if rounded is None else [rounded.noise, rounded.kl]
            known = {"size": size, "reason": found.reason, "rounded": lost}
            state.save_record(self.name, known)
        state.remove_folder(self.name)  # also what a kill before this line left
        size, seed, lost = int(known["size"]), self.rounded.options.seed, known.get("rounded")
        return Residual(
            Rotation(size, seed) if size else None,
            str(known["reason"]),
            None if lost is None else Divergence(*lost),
        )

    def _found(self) -> Residual:
        """Not rotated where the model has no stream that could be, and where it does not help."""
        try:
            stream = stream_of(self.simulator.model.module)
        except ConfigError as error:
            return Residual(None, str(error))
        size, layers = min(LARGEST, stream.width & -stream.width), stream.layers()
        if size < 2:
            return Residual(None, f"the residual stream has an odd width, {stream.width}")
        if not any(layer in layers for part in self.rounded.parts.values() for layer in part):
            return Residual(None, "no layer that is quantized reads the residual stream")
        rotation = Rotation(size, self.rounded.options.seed)
        plain, turned = self._loss(None, layers), self._loss(rotation, layers)
        helps = turned.cost < CLEARLY * plain.cost
        how = f"with its residual stream rotated in blocks of {size}"
        said = compared({"as it is": plain, how: turned})
        return Residual(rotation if helps else None, said, turned if helps else plain)

    def _loss(self, rotation: Rotation | None, gains: Mapping[str, Any]) -> Divergence:
        """What the model loses, all groups rounded to nearest; gains: of the norm that each layer
        on the stream reads, if any.
        """
        model, simulator, step = self.simulator.model, self.simulator, int(rotation is not None)
        if rotation is not None:
            simulator = Simulator(run((RotateResidual(rotation),), model))

        def sample(group: str) -> Array:
            x, gain = self.statistics[group].sample, gains.get(self.rounded.parts[group][0])
            if rotation is None or gain is None:
                return x
            return _as_read(x, constant_of(gain, model.weights), rotation)

        def progress(_stage: str, done: int, total: int) -> None:
            self.progress("residual", step * total + done, 2 * total)

        folder = f"{self.name}/{'plain' if rotation is None else rotation.name}"
        return self.rounded.loss(simulator, sample, folder, progress)


def _as_read(x: Array, gain: Array | None, rotation: Rotation) -> Array:
    """What a linear reads once the stream is rotated: of a norm without its gain."""
    assert gain is not None  # it is known, or there is no stream
    bare = np.divide(x, gain, out=np.zeros_like(x), where=gain != 0)
    return rotation.apply(bare)
