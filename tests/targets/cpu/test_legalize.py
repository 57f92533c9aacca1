"""im2col with exact zeros and views that cost nothing, for symbolic sizes."""

from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from tvm import relax

from lbcompiler.ir import ops
from tests.targets.cpu.relax_runner import B, H, L, W, function, normal


@pytest.mark.parametrize(
    ("channels", "kernel", "strides", "padding", "dilation"),
    [
        (16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        (3, (3, 3), (2, 2), (1, 0, 1, 2), (1, 1)),
        (20, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
        (8, (5, 3), (2, 1), (2, 1, 2, 1), (1, 2)),
    ],
)
def test_im2col_against_numpy(
    channels: int, kernel: Any, strides: Any, padding: Any, dilation: Any
) -> None:
    built = function(
        lambda x: ops.im2col(x, kernel=kernel, strides=strides, padding=padding, dilation=dilation),
        (B, channels, H, W),
    )
    assert built.rules == ["stages"]
    for size in ((2, channels, 9, 33), (1, channels, 40, 40)):
        x = normal(*size)
        top, left, bottom, right = padding
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
        reach = [step * (k - 1) + 1 for k, step in zip(kernel, dilation, strict=True)]
        found = sliding_window_view(padded, reach, (2, 3))
        found = found[:, :, :: strides[0], :: strides[1], :: dilation[0], :: dilation[1]]
        rows = found.transpose(0, 2, 3, 4, 5, 1)
        np.testing.assert_array_equal(built(x), rows.reshape(*rows.shape[:3], -1))


def test_changes_of_shape_run_no_code() -> None:
    def views(x: Any) -> Any:
        y = relax.op.reshape(relax.op.expand_dims(x, [1]), (B * L, 8))
        return relax.op.flatten(relax.op.squeeze(relax.op.expand_dims(y, [0]), [0]))

    built = function(views, (B, L, 8))
    assert built.rules == []
    x = normal(2, 3, 8)
    np.testing.assert_array_equal(built(x), x.reshape(-1))
