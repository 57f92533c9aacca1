"""What the codes of a weight may say once its scales are fixed."""

from dataclasses import dataclass

import numpy as np

from lbcompiler.formats import BlockFormat, Quantized, decode_scales
from lbcompiler.formats.elements import Floats
from lbcompiler.quantizers.curvature import Curvature, Indices
from lbcompiler.quantizers.problem import Problem

NEVER = np.float32(2.0**120)  # the step of a block of zeros: all rounds to zero under it


@dataclass(frozen=True, eq=False)
class Grid:
    """A value of column k of row n is an element's value times steps[n, k].

    A block that was all zeros, whose scale says nothing, stays so whatever its neighbours ask of
    it. Steps are scale * tensor scale in one product, the divisor of `BlockFormat.quantize`."""

    fmt: BlockFormat
    scaled: Quantized  # whose scales hold
    steps: Floats  # (N, K)

    @classmethod
    def of(cls, scaled: Quantized, fmt: BlockFormat) -> "Grid":
        """The grid under the scales of `scaled`, a quantized (N, K)."""
        k = scaled.codes.shape[1]
        starts = np.arange(0, k, fmt.block)
        empty = ~np.logical_or.reduceat(scaled.codes != 0, starts, axis=1)
        steps = decode_scales(scaled.scales, fmt.scale)
        if scaled.tensor_scale is not None:
            steps *= scaled.tensor_scale
        steps[empty] = NEVER
        return cls(fmt, scaled, np.repeat(steps, fmt.block, axis=1)[:, :k])

    @classmethod
    def under(cls, curved: Curvature, problem: Problem, factor: float | None = None) -> "Grid":
        """The grid under the scales of the best real weight, by the problem's rule; one that
        searches weighs errors by the pivots, as they count once later columns make up for them.
        factor: the tensor scale of a format without one.
        """
        fmt = problem.fmt if factor is None else problem.fmt.scaled
        g = None if factor is None else np.asarray(factor, np.float32)
        target, pivots = curved.target, curved.pivots
        scaled = fmt.quantize(target, problem.rule, importance=pivots, tensor_scale=g)
        return cls.of(scaled, fmt)

    def encode_columns(self, values: Floats, order: Indices) -> Quantized:
        """`encode` of (K, N), column order[i] of the weight in row i."""
        original = np.empty_like(values)
        original[order] = values
        return self.encode(np.ascontiguousarray(original.T))

    def encode(self, values: Floats) -> Quantized:
        """`values` (N, K) in units of the steps, each one an element's value."""
        codes = self.fmt.element.encode(values)
        codes[self.steps == NEVER] = 0  # also where a -0 stands
        return Quantized(codes, self.scaled.scales, self.scaled.tensor_scale)
