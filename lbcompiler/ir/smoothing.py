"""A factor and an offset for each channel of what linears read, and where they may come from.

    x' = (x - shift) / scale      W' = W * scale      b' = b + W shift

is the same linear in real arithmetic; what it gains is that the channels of x' are alike before
blocks of them are quantized. After SmoothQuant (arXiv 2211.10438, section 4) and Outlier
Suppression+ (arXiv 2304.09145, section 4)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import ConfigError
from lbcompiler.formats.elements import Floats

Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Smoothing:
    """scale (K,) float32, positive; shift (K,) float32 or None for zeros; method: where they come
    from, for the layer's record.
    """

    scale: Floats
    shift: Floats | None = None
    method: str = "given"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ConfigError(
                f"the scales of a smoothing are positive and finite; {self.method} has "
                f"{self.scale.min()} to {self.scale.max()}"
            )
        if self.shift is None:
            return
        if self.shift.shape != self.scale.shape or not np.isfinite(self.shift).all():
            raise ConfigError(
                f"a smoothing has a finite shift for each scale; {self.method} has "
                f"{self.shift.shape} shifts for {self.scale.shape} scales"
            )

    def activation(self, x: Floats) -> Floats:
        """x' of x (.., K)."""
        return (x if self.shift is None else x - self.shift) / self.scale

    def weight(self, weight: Floats) -> Floats:
        """W' of W (N, K)."""
        return weight * self.scale

    def bias(self, weight: Floats) -> Floats:
        """W shift (N,), what the bias gains; zeros without a shift."""
        if self.shift is None:
            return np.zeros(len(weight), np.float32)
        return (weight.astype(np.float64) @ self.shift).astype(np.float32)

    def equals(self, other: "Smoothing") -> bool:
        mine, theirs = (np.float32(0) if s.shift is None else s.shift for s in (self, other))
        return np.array_equal(self.scale, other.scale) and bool(np.all(mine == theirs))


@dataclass(frozen=True, eq=False)
class Folding:
    """What can be folded into what computes the input of `layers`, which all read the same.

    rows (K,): scales and shifts of channels with the same number must be equal, because they are
    one number where they are folded (heads that share their values, the places of a window); None
    with `reason`, why nothing can be folded. shifts: whether a shift can."""

    layers: tuple[str, ...]
    rows: Indices | None = None
    shifts: bool = False
    reason: str = ""
