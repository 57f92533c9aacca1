"""im2col with exact zeros, depthwise convolutions, views that cost nothing: symbolic sizes."""

from typing import Any

import numpy as np
import pytest
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.targets.cpu.isa import AVX2, AVX512_VNNI, GENERIC, Isa, detect
from tests.bench.windows import windows_of
from tests.targets.cpu.relax_runner import B, H, L, W, function, normal

ALL = [isa for isa in (AVX512_VNNI, AVX2, GENERIC) if isa.runs_on(detect())]


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
        (B, H, W, channels),
    )
    assert built.rules == ([] if kernel == (1, 1) else ["stages"])
    for size in ((2, 9, 33, channels), (1, 40, 40, channels)):
        x = normal(*size)
        rows = windows_of(x, kernel, strides, padding, dilation)
        np.testing.assert_array_equal(built(x), rows.reshape(*rows.shape[:3], -1))


@pytest.mark.parametrize("isa", ALL, ids=lambda isa: isa.name)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 40, 100])
@pytest.mark.parametrize(
    ("kernel", "strides", "padding", "dilation"),
    [
        ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
        ((5, 5), (2, 1), (2, 2, 2, 2), (1, 1)),
        ((3, 3), (2, 2), (0, 1, 2, 0), (1, 1)),
        ((1, 4), (1, 3), (0, 3, 0, 1), (1, 2)),
        ((3, 2), (1, 1), (0, 0, 0, 0), (2, 1)),
    ],
)
def test_depthwise_against_numpy(
    isa: Isa, channels: int, kernel: Any, strides: Any, padding: Any, dilation: Any
) -> None:
    attrs = {"strides": strides, "padding": padding, "dilation": dilation}
    built = function(
        lambda x, w, b: ops.hardswish(ops.depthwise(x, w, b, layer="l", **attrs)),
        (B, H, W, channels),
        (*kernel, channels),
        (channels,),
        isa=isa,
    )
    w, bias = normal(*kernel, channels, seed=1), normal(channels, seed=2)
    for size in ((2, 9, 33), (1, 5, 5), (1, 40, 6)):
        x = normal(*size, channels)
        y = (windows_of(x, kernel, **attrs) * w).sum((3, 4), dtype=np.float64) + bias
        expected = y * np.clip(y + 3, 0, 6) / 6
        np.testing.assert_allclose(built(x, w, bias), expected, rtol=1e-4, atol=1e-4)


def test_changes_of_shape_run_no_code() -> None:
    def views(x: Any) -> Any:
        y = relax.op.reshape(relax.op.expand_dims(x, [1]), (B * L, 8))
        return relax.op.flatten(relax.op.squeeze(relax.op.expand_dims(y, [0]), [0]))

    built = function(views, (B, L, 8))
    assert built.rules == []
    x = normal(2, 3, 8)
    np.testing.assert_array_equal(built(x), x.reshape(-1))
