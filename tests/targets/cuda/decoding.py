"""Kernels that decode every code under every scale byte, and what they must give."""

import numpy as np
from tvm.tirx.script import builder as T

from lbcompiler.formats import BlockFormat, decode_scales
from lbcompiler.targets.cuda.decode import product, scale_pair, value_pair
from lbcompiler.targets.cuda.intrinsics import kernel, launch, uint32
from lbcompiler.targets.cuda.layout import offset_mask


def every_pair(fmt: BlockFormat) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scale bytes, each with each; E4M3 without its sign."""
    scales = 256 if fmt.scale == "e8m0" else 128
    grid = np.mgrid[: 2**fmt.element.bits, :scales].astype(np.uint8)
    return grid[0].ravel(), grid[1].ravel()


def exact(fmt: BlockFormat, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    values = fmt.element.values[codes].astype(np.float64)
    return values * decode_scales(scales, fmt.scale).astype(np.float64)


def decoding(fmt: BlockFormat, count: int):
    with kernel() as builder:
        x = T.arg("codes", T.buffer((count,), "uint32"))
        s = T.arg("scales", T.buffer((count,), "uint32"))
        y = T.arg("y", T.buffer((count,), "uint32"))
        with launch([count // 32], 32) as (place, thread):
            at = place[0] * 32 + thread
            values = value_pair(fmt.element)(x[at] | x[at] << uint32(16))
            T.buffer_store(y, product(values, scale_pair(fmt.scale)(s[at])), [at])
    return builder.get()


def operands(fmt: BlockFormat) -> tuple[np.ndarray, np.ndarray]:
    """Codes as weights are packed, and scale bytes, for `decoding`."""
    codes, scales = every_pair(fmt)
    stored = (codes ^ np.uint8(offset_mask(fmt.element))).astype(np.uint32)
    return stored, scales.astype(np.uint32)
