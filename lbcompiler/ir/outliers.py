"""Input channels that are multiplied a second time, in a wider format: LLM.int8()'s decomposition
(arXiv 2208.07339, section 3.2), decided at compile time.

There the outlier features of a batch are found and gathered as it comes. Here they are known from
calibration, and taken out in whole blocks, because an outlier spoils the numbers that share its
scale and no others:

    x w^T = x rest(w)^T + x_out outliers(w)^T

rest(w) is w with zeros in the blocks that are taken out, so that what an outlier spoils meets zeros
only; x_out is one slice of x, or a few. The first product still reads all of x: it costs the taken
share of the multiplications, and saves a copy of x and a quantization of its own for every linear
that shares x with others."""

from dataclasses import dataclass

import numpy as np

from lbcompiler.errors import ConfigError
from lbcompiler.formats.elements import Floats

THRESHOLD = 6.0  # arXiv 2208.07339, section 3.2: of features behind a layer norm, whose rms is 1
SHARE = 0.01  # of the channels, ten times what the paper finds in models of up to 13 billion


@dataclass(frozen=True)
class Split:
    """channels: which of the layer's input go out, any order; format: of the second product, both
    sides, or "float32"; block: whole blocks of so many channels go, a multiple of the layer's
    formats' own and of its rotation's size.
    """

    channels: tuple[int, ...]
    format: str
    block: int = 32


@dataclass(frozen=True, eq=False)
class Arrangement:
    """How the input channels of a layer are cut. order (K,): place i holds channel order[i] of the
    source; taken: ranges of places, from the first to behind the last, that go to the second
    product.
    """

    order: np.ndarray
    taken: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return sum(end - start for start, end in self.taken)

    def rest(self, weight: Floats) -> Floats:
        """(N, K) of the first product."""
        rest = weight[:, self.order]
        for start, end in self.taken:
            rest[:, start:end] = 0
        return rest

    def outliers(self, weight: Floats) -> Floats:
        """(N, count) of the second product; of an x (R, K) what it reads."""
        ordered = weight[:, self.order]
        return np.concatenate([ordered[:, start:end] for start, end in self.taken], axis=1)


def outlier_channels(
    absmax: Floats, typical: float, threshold: float = THRESHOLD, share: float = SHARE
) -> tuple[int, ...]:
    """Channels whose largest magnitude absmax (K,) is above threshold * typical, the largest first,
    at most `share` of all (but one may always go).

    `typical` is what counts as 1. LLM.int8()'s threshold of 6 is for features of rms 1: give the
    rms of the input."""
    order = np.argsort(-absmax, kind="stable")
    limit = max(1, int(share * len(absmax)))
    return tuple(int(j) for j in order[:limit] if absmax[j] > threshold * typical)


def arranged(layer: str, k: int, split: Split, *, reorders: bool) -> Arrangement:
    """The blocks that hold the split's channels; with `reorders` its channels stand last, where
    that makes them fewer. Raises ConfigError."""
    channels = sorted(set(split.channels))
    if not channels or channels[0] < 0 or channels[-1] >= k:
        raise ConfigError(
            f"layer {layer!r} reads channels 0 to {k - 1}; its outliers are to be some of them: "
            f"{list(split.channels)[:5]}"
        )
    order, blocks = np.arange(k), sorted({channel // split.block for channel in channels})
    last = (k - len(channels)) // split.block  # the first block of those that would hold them all
    if reorders and -(-k // split.block) - last < len(blocks):
        is_out = np.isin(order, channels)
        order, blocks = np.concatenate([order[~is_out], order[is_out]]), []
        blocks.extend(range(last, -(-k // split.block)))
    taken: list[tuple[int, int]] = []
    for block in blocks:
        start, end = block * split.block, min(k, (block + 1) * split.block)
        if taken and taken[-1][1] == start:
            start = taken.pop()[0]
        taken.append((start, end))
    arrangement = Arrangement(order, tuple(taken))
    if arrangement.count >= k:
        raise ConfigError(
            f"the outliers of layer {layer!r} lie in all blocks of its {k} channels: give the "
            f"layer the format {split.format} as a whole, or split off fewer"
        )
    return arrangement
