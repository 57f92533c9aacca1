"""What the CUDA kernels must compute, in numpy, and how far a sum of float32 may be from it."""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from lbcompiler.formats import BlockFormat, Quantized
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.kernels import Config, LinearKernel
from lbcompiler.targets.cuda.layout import DEPTH, depths

Array = NDArray[Any]
SM_80 = arch_named("sm_80")
SMALL = Config(
    rows=32, columns=32, row_warps=2, column_warps=1, stages=2, few_warps=2, few_stages=2
)  # little code, so that g++ is quick
ROUNDING = 2.0**-24  # of a float32, to nearest


def to_bfloat16(values: Array) -> Array:
    """Nearest bfloat16 as uint16, ties to even."""
    return np.asarray(values, np.float32).astype(ml_dtypes.bfloat16).view(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """uint16 -> float32."""
    return np.asarray(bits.view(ml_dtypes.bfloat16).astype(np.float32))


def products(q: Quantized, fmt: BlockFormat) -> Array:
    """code * scale, without the tensor scale, float32."""
    with np.errstate(all="ignore"):
        return fmt.dequantize(Quantized(q.codes, q.scales))


def activation_operands(kernel: LinearKernel, x: Array, rule: str | None = None) -> list[Array]:
    """What `quantize` writes for float32 rows (M, K)."""
    m, k = x.shape
    values = np.zeros((m, kernel.parts, depths(k) * DEPTH), np.uint16)
    if kernel.act is None:
        bits = np.ascontiguousarray(x).view(np.uint32)
        is_finite = np.isfinite(x)
        high = np.where(is_finite, bits & 0xFFFF0000, bits).astype(np.uint32).view(np.float32)
        low = np.where(is_finite, x - np.where(is_finite, high, 0), 0).astype(np.float32)
        values[:, 0, :k], values[:, 1, :k] = to_bfloat16(high), to_bfloat16(low)
        return [values]
    q = kernel.act.quantize(x, rule, per_row=True)
    values[:, 0, :k] = to_bfloat16(products(q, kernel.act))
    if q.tensor_scale is None:
        return [values]
    return [values, np.asarray(q.tensor_scale, np.float32).reshape(m, 1)]


def rows_of(operands: list[Array], k: int) -> Array:
    """(M, K) float64 that the operands stand for."""
    x = from_bfloat16(operands[0]).astype(np.float64).sum(axis=1)[:, :k]
    return x * operands[1] if len(operands) > 1 else x


def sum_tolerance(kernel: LinearKernel, x: Array, w: Array, bias: Array | None) -> Array:
    """How far y may be from the exact sum: products are exact; every instruction of 16 k's, every
    warp that is added up, the two scales and the bias round once, each by 2^-24 of what has been
    summed at most, magnitudes for safety.
    """
    steps = depths(x.shape[1]) * DEPTH // 16 * kernel.parts
    terms = steps + SMALL.few_warps + 3
    size = np.abs(x) @ np.abs(w).T + (0 if bias is None else np.abs(bias))
    return np.asarray(terms * ROUNDING * size)
