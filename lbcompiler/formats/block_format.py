"""A block-scaled format and its numpy arithmetic: the reference every kernel is tested against.

value = decode(code) * scale * tensor scale, from left to right in float32. Quantization divides by
the *rounded* scale (a product with its reciprocal differs on 4.8 % of the ties), rounds to nearest
even and saturates. A block with a NaN or Inf has a NaN scale and zero codes; a block of zeros (of
either sign) has zero codes under the smallest scale; a short last block is one padded with zeros,
whose padding is not stored.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.errors import ConfigError
from lbcompiler.formats.elements import Codes, Element, Floats
from lbcompiler.formats.scale_rules import (
    DEFAULT_RULE,
    RULES,
    Blocks,
    block_scales,
    divisors,
    tensor_scales,
)
from lbcompiler.formats.scales import NAN_BYTE, ScaleType, decode_scales

CHUNK = 1 << 18  # elements at a time: a chunk and its temporaries stay in the second-level cache


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor (..., K) in a block-scaled format.

    codes: uint8 (..., K), low bits used. scales: uint8 (..., ceil(K/block)), of the scale type.
    tensor_scale: None (MX), or float32 of shape () for the whole tensor, (..., 1) for one a row.
    """

    codes: Codes
    scales: Codes
    tensor_scale: Floats | None = None


@dataclass(frozen=True)
class BlockFormat:
    """`block` elements along the last axis share one scale byte.

    plain: the MX format whose weights have a tensor scale here, None of any other format."""

    name: str
    element: Element
    scale: ScaleType
    block: int
    plain: "BlockFormat | None" = None

    @property
    def rules(self) -> tuple[str, ...]:
        return RULES[self.scale]

    @property
    def default_rule(self) -> str:
        return DEFAULT_RULE[self.scale]

    @property
    def has_tensor_scale(self) -> bool:
        return self.scale == "e4m3" or self.plain is not None

    @property
    def scaled(self) -> "BlockFormat":
        """The same of a weight that has a tensor scale; it is no format of the table."""
        if self.has_tensor_scale:
            return self
        return replace(self, name=f"{self.name}_scaled", plain=self)

    @property
    def parts(self) -> int:
        """How many tensors hold a quantized one: codes, scales[, tensor scale]."""
        return 3 if self.has_tensor_scale else 2

    @property
    def bits_per_element(self) -> float:
        """With the block's share of its scale; without the tensor scale."""
        return self.element.bits + 8 / self.block

    def blocks(self, k: int) -> int:
        """Blocks of a row of k elements; the last may be short."""
        return -(-k // self.block)

    def quantize(
        self,
        x: NDArray[Any],
        rule: str | None = None,
        *,
        per_row: bool = False,
        importance: Floats | None = None,
        tensor_scale: Floats | None = None,
    ) -> Quantized:
        """x (..., K) of any float type -> `Quantized`; `per_row`: a tensor scale for each row.

        importance: (K,), how much a column's squared error counts in a rule that searches.
        tensor_scale: () float32, to be used instead of the rule's; for formats that have one.
        Raises ConfigError on an unknown rule and on an x without axes.
        """
        rule = self._rule(rule)
        if self.plain is not None:
            factor = np.asarray(1 if tensor_scale is None else tensor_scale, np.float32)
            q = self.plain.quantize(_as_float32(x) / factor, rule, importance=importance)
            return Quantized(q.codes, q.scales, factor)
        if x.ndim == 0:
            raise ConfigError(f"{self.name} scales blocks along the last axis; a scalar has none.")
        *rows_shape, k = x.shape
        rows = x.reshape(math.prod(rows_shape), k)
        g = self._tensor_scales(rows, rule, per_row)
        if g is not None and tensor_scale is not None:
            g = np.broadcast_to(tensor_scale, g.shape)
        weights = None if importance is None else self._blocks(importance[None])
        codes = np.empty(rows.shape, np.uint8)
        scales = np.empty((len(rows), self.blocks(k)), np.uint8)
        for part in _chunks(rows):
            g_rows = g[part] if g is not None and per_row else g
            codes[part], scales[part] = self._quantize_rows(
                _as_float32(rows[part]), rule, g_rows, weights
            )
        if g is not None:
            g = g.reshape((*rows_shape, 1) if per_row else ())
        return Quantized(codes.reshape(x.shape), scales.reshape(*rows_shape, self.blocks(k)), g)

    def rounded(self, x: NDArray[Any], rule: str | None = None, *, per_row: bool = False) -> Floats:
        """x (..., K) as it is read back: what quantizing leaves of it, float32."""
        return self.dequantize(self.quantize(x, rule, per_row=per_row))

    def dequantize(self, q: Quantized) -> Floats:
        """float32 shaped like the codes."""
        *rows_shape, k = q.codes.shape
        count = math.prod(rows_shape)
        codes, scales = q.codes.reshape(count, k), q.scales.reshape(count, self.blocks(k))
        g = None if q.tensor_scale is None else q.tensor_scale.reshape(-1, 1)
        x = np.empty(codes.shape, np.float32)
        for part in _chunks(codes):
            spread = np.repeat(decode_scales(scales[part], self.scale), self.block, axis=1)
            with np.errstate(over="ignore"):  # a scale of 2^127 may meet any code of a foreign file
                np.multiply(self.element.decode(codes[part]), spread[:, :k], out=x[part])
            if g is not None:
                x[part] *= g if len(g) == 1 else g[part]
        return x.reshape(q.codes.shape)

    def _rule(self, rule: str | None) -> str:
        if rule is None:
            return self.default_rule
        if rule not in self.rules:
            raise ConfigError(
                f"{self.name} has no scale rule {rule!r}; choose one of {', '.join(self.rules)}."
            )
        return rule

    def _tensor_scales(self, rows: NDArray[Any], rule: str, per_row: bool) -> Floats | None:
        """(rows,) or (1,) float32 from the finite elements; None for MX."""
        if not self.has_tensor_scale:
            return None
        maxima = np.zeros(len(rows), np.float32)
        for part in _chunks(rows):
            magnitude = np.abs(_as_float32(rows[part]))
            maxima[part] = magnitude.max(axis=1, initial=0, where=np.isfinite(magnitude))
        if not per_row:
            maxima = maxima.max(keepdims=True, initial=0)
        return tensor_scales(maxima, self.element, rule)

    def _blocks(self, rows: Floats) -> Floats:
        """(R, K) -> (R * blocks, block), the short last block of a row padded with zeros."""
        if missing := -rows.shape[1] % self.block:
            rows = np.pad(rows, ((0, 0), (0, missing)))
        return rows.reshape(-1, self.block)

    def _quantize_rows(
        self, rows: Floats, rule: str, g: Floats | None, weights: Floats | None
    ) -> tuple[Codes, Codes]:
        """Codes and scale bytes of (R, K) rows; g is one a row, one for all, or None."""
        (r, k), count = rows.shape, self.blocks(rows.shape[1])
        blocks = self._blocks(rows)
        maxima = np.abs(blocks).max(axis=1, initial=0)
        finite = np.isfinite(maxima)
        if not finite.all():
            blocks = np.where(finite[:, None], blocks, np.float32(0))
            maxima = np.where(finite, maxima, np.float32(0))
        if g is not None and len(g) > 1:
            g = np.repeat(g, count)
        if weights is not None:
            weights = np.tile(weights, (r, 1))
        searched = Blocks(blocks, maxima, self.element, weights)
        scales = block_scales(searched, self.scale, rule, g)
        codes = self.element.encode(blocks / divisors(scales, self.scale, g)[:, None])
        codes[maxima == 0] = 0  # also where a -0 stood
        scales[~finite] = NAN_BYTE[self.scale]
        return codes.reshape(r, count * self.block)[:, :k], scales.reshape(r, count)


def _chunks(rows: NDArray[Any]) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, rows.shape[1]))
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _as_float32(x: NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes Inf, and its block NaN
        return np.ascontiguousarray(x, np.float32)
