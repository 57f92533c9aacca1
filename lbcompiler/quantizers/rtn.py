"""Round to nearest: each block by itself, its scale by the format's rule."""

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.ir.model import Array


def round_to_nearest(weight: Array, fmt: BlockFormat, rule: str) -> Quantized:
    """(N, K) float32 -> codes (N, K), scales (N, ceil(K/block))[, tensor scale ()]."""
    return fmt.quantize(weight, rule)
