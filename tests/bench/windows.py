"""The windows of a convolution in numpy, and which ones a kernel's name says it takes."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]
NAMED = re.compile(
    r"windows_(\d+)x(\d+)x\d+_by_(\d+)x(\d+)_pad_(\d+)_(\d+)_(\d+)_(\d+)_every_(\d+)x(\d+)"
)


def windows_of(
    x: Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Array:
    """(N, H, W, C) -> (N, OH, OW, kh, kw, C)."""
    top, left, bottom, right = padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    reach = [step * (k - 1) + 1 for k, step in zip(kernel, dilation, strict=True)]
    found = sliding_window_view(padded, reach, (1, 2))
    found = found[:, :: strides[0], :: strides[1], :, :: dilation[0], :: dilation[1]]
    return found.transpose(0, 1, 2, 4, 5, 3)


def rows_of(x: Array, kernel_name: str) -> Array:
    """x (N, H, W, C) as the rows (M, K) that a kernel of this name makes of it."""
    found = NAMED.search(kernel_name)
    assert found is not None, kernel_name
    numbers = [int(number) for number in found.groups()]
    rows = windows_of(x, numbers[:2], numbers[2:4], numbers[4:8], numbers[8:])
    return rows.reshape(-1, int(np.prod(rows.shape[3:])))
