"""The outliers of a group's input, and what becomes of its problem without them.

Whole blocks go to the second product (`ir.outliers`), so the problem of the first is the same with
fewer columns: those that were taken out get zero codes, whatever a quantizer would have asked of
them. Activations are still rounded as a whole row, because a row may have one scale.
"""

from dataclasses import dataclass

import numpy as np

from lbcompiler.formats import BlockFormat, Quantized, format_named
from lbcompiler.formats.elements import Floats
from lbcompiler.ir.model import Array
from lbcompiler.ir.outliers import Arrangement, Split, outlier_channels

WIDE = "mxint8"  # of the second product, both sides
AUTO, OFF = "auto", "off"


def outlier_sets(absmax: Floats, rms: float, asked: str | int) -> list[tuple[int, ...]]:
    """Channels that may go, absmax (K,) being the largest magnitude of each: the loudest `asked`,
    or by `auto` the loudest 1, 2, 4, .. of LLM.int8()'s outliers.
    """
    if asked == OFF:
        return []
    if isinstance(asked, int):
        loudest = np.argsort(-absmax, kind="stable")[:asked]
        return [tuple(int(channel) for channel in loudest)]
    found = outlier_channels(absmax, rms)
    counts = [1 << i for i in range(len(found).bit_length())]
    return list(dict.fromkeys(found[:count] for count in (*counts, len(found)) if found))


@dataclass(frozen=True, eq=False)
class Cut:
    """The two products of a layer whose outliers were split off."""

    arrangement: Arrangement

    @property
    def kept(self) -> Array:
        """(K - taken,): the places that the first product multiplies."""
        is_kept = np.ones(len(self.arrangement.order), bool)
        for start, end in self.arrangement.taken:
            is_kept[start:end] = False
        return np.flatnonzero(is_kept)

    def ordered(self, x: Floats) -> Floats:
        """x (.., K) with its channels in their places."""
        return x[..., self.arrangement.order]

    def beside(self, x: Floats, weight: Floats) -> Floats:
        """The second product (R, N) of x (R, K) and a weight (N, K), channels as in the source."""
        wide = format_named(WIDE)
        read, held = (wide.rounded(self.arrangement.outliers(part)) for part in (x, weight))
        return read @ held.T

    def whole(self, q: Quantized, fmt: BlockFormat) -> Quantized:
        """(N, K) codes of the first product from those of its kept places."""
        n, k = len(q.codes), len(self.arrangement.order)
        empty = fmt.quantize(np.zeros((n, k), np.float32))
        codes, scales = empty.codes, empty.scales
        codes[:, self.kept] = q.codes
        blocks = np.unique(self.kept // fmt.block)
        scales[:, blocks] = q.scales
        return Quantized(codes, scales, q.tensor_scale)


def split_of(channels: tuple[int, ...], *blocks: int) -> Split:
    """These channels, in blocks that are whole blocks of every format and of the rotation."""
    return Split(channels, WIDE, max(format_named(WIDE).block, *blocks))
