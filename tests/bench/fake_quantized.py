"""Linears and convolutions on numpy-quantized operands: what a compiled layer must compute.

Everything between two roundings of the format is float64, so that what differs from a kernel is the
kernel's own accumulation. The arithmetic of the formats is `lbcompiler.formats`, which is tested by
itself against ml_dtypes and onnx; nothing here knows TVM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats import format_named

Array = NDArray[Any]


@dataclass(frozen=True)
class Quantization:
    """A format and scale rule for weights, and for activations; "none" rounds nothing.

    One for all layers; `decided.DecidedQuantization` is the same for layers that differ."""

    format: str
    act_format: str = "none"
    scale_rule: str | None = None
    act_scale_rule: str | None = None

    def weight(self, _layer: str, w: Array) -> Array:
        """(N, K) -> the same after rounding, float32; one tensor scale for all."""
        if self.format == "none":
            return w
        return format_named(self.format).rounded(w, self.scale_rule)

    def read(self, _layer: str, x: Array) -> Array:
        """(..., K) of the float model -> what is to be rounded."""
        return x

    def bias(self, _layer: str, _w: Array, bias: Array | None) -> Array | None:
        """(N,) that is added, w (N, K) being the float weight."""
        return bias

    def outliers(self, _layer: str) -> dict[str, int]:
        """How many channels a second product has, by its name."""
        return {}

    def result(self, _layer: str, _w: Array, _x: Array, y: Array, _follow: Any) -> Array:
        """(..., N) of the float model from the product y, x being what was rounded for it."""
        return y

    def activation(self, _layer: str, x: Array) -> Array:
        """(..., K) -> the same after rounding, float32; a tensor scale of its own for each row."""
        if self.act_format == "none":
            return x
        return format_named(self.act_format).rounded(x, self.act_scale_rule, per_row=True)


class Following(dict[str, Array]):
    """Activations of another run by layer; `own_db` notes how near the asker's own were, in dB."""

    def __init__(self, activations: Mapping[str, Array]) -> None:
        super().__init__(activations)
        self.own_db: dict[str, float] = {}

    def instead_of(self, own: Array, layer: str) -> Array:
        """The compiled model's activation in the shape of `own`; `own` of a weight-only layer."""
        if layer not in self:
            return own
        given = self[layer].reshape(own.shape)
        self.own_db[layer] = qsnr(own, given)
        return given


def linear(x: Array, w: Array, bias: Array | None = None) -> Array:
    """(..., K) x (N, K) [+ (N,)] -> (..., N) float32."""
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    y = rows @ w.T.astype(np.float64)
    if bias is not None:
        y += bias.astype(np.float64)
    return y.reshape(*x.shape[:-1], w.shape[0]).astype(np.float32)


def windows(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Array:
    """(N, C, H, W) -> (N, OH, OW, kh*kw*C), the channel fastest; padding: top left bottom right."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    view = view[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]
    batch, _, height, width = view.shape[:4]
    return view.transpose(0, 2, 3, 4, 5, 1).reshape(batch, height, width, -1)


def conv_weight_rows(w: Array) -> Array:
    """(O, C, kh, kw) -> (O, kh*kw*C), in the order of `windows`."""
    return w.transpose(0, 2, 3, 1).reshape(w.shape[0], -1)


def qsnr(reference: Array, y: Array) -> float:
    """Signal to noise in dB: 10 log10(sum reference^2 / sum (reference - y)^2); inf where equal."""
    signal = np.square(reference.astype(np.float64)).sum()
    noise = np.square(reference.astype(np.float64) - y.astype(np.float64)).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(signal / noise))
