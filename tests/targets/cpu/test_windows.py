"""Windows quantized on the way, or gathered from quantized pixels: the bits of im2col's rows."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cpu.float_activations import pair_count
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cpu.layout import padded
from lbcompiler.targets.cpu.windows import (
    Windows,
    WindowShape,
    gather_windows,
    gathered_operands,
)
from tests.bench.windows import rows_of
from tests.targets.cpu.reference import call, compiled

GEOMETRY = {  # kernel, strides, padding (top, left, bottom, right), dilation
    "same": ((3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "one pixel in two": ((1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    "lopsided": ((3, 2), (2, 1), (0, 2, 1, 0), (1, 1)),
    "dilated": ((2, 3), (1, 2), (1, 2, 0, 2), (2, 3)),
    "flat": ((1, 5), (1, 1), (0, 2, 0, 2), (1, 1)),
}
CASES = [*product(GEOMETRY, (1, 3, 32)), *product(("same", "lopsided"), (40, 320))]
NEAR = [*product(GEOMETRY, (5, 64)), *product(GEOMETRY.keys() - {"same", "lopsided"}, (40, 320))]
PAIRS = [("mxint8", "mxint8"), ("nvfp4", "nvfp4"), ("mxfp8", "mxfp8")]
# the zero point of nvint4's weights in the sums of mxint8's blocks
OTHER_ZERO = ("nvint4", "mxint8")
SIZES = ((2, 5, 7), (1, 4, 21))


def shape_of(geometry: str, channels: int) -> WindowShape:
    return WindowShape(*GEOMETRY[geometry], channels)


def pixels(shape: WindowShape, size: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*size, shape.channels)) * np.exp(4 * rng.standard_normal((*size, 1)))
    x[0, 1, 2] = 0
    x[0, 0, 0, 0], x[-1, -1, -1, -1] = np.nan, -np.inf
    x[0, 2, 3] *= 2.0**100
    return x.astype(np.float32)


def operands(kernel: LinearKernel, function: Any, x: np.ndarray, m: int, k: int) -> list[Any]:
    specs = [((m, *shape), dtype) for shape, dtype in kernel.quantized_specs(k)]
    found = call(function, [x], *specs)
    return trimmed(kernel, found, k)


def trimmed(kernel: LinearKernel, found: list[Any], k: int) -> list[Any]:
    """Without the garbage between rows."""
    width = k
    if kernel.is_integer:
        width = padded(k, kernel.block)
    elif kernel.takes_pairs:
        width = pair_count(k)
    return [found[0][:, :width], *found[1:]]


@pytest.mark.parametrize(
    ("geometry", "channels"),
    CASES + [pytest.param(*case, marks=pytest.mark.slow) for case in sorted(NEAR)],
)
def test_windows_are_the_rows_of_im2col(geometry: str, channels: int) -> None:
    shape = shape_of(geometry, channels)
    k = shape.kernel[0] * shape.kernel[1] * channels
    pairs = [*PAIRS, OTHER_ZERO] if geometry == "lopsided" else PAIRS
    kernels = {pair: kernel_for(*(FORMATS[name] for name in pair), detect()) for pair in pairs}
    functions: dict[str, Any] = {}
    for pair, kernel in kernels.items():
        name, rule = "_".join(pair), kernel.act.default_rule
        functions[f"rows_{name}"] = kernel.quantize(k, rule)
        functions[f"windows_{name}"] = kernel.quantize(k, rule, Windows(shape))
        plan = gathered_operands(kernel, channels, k)
        assert (plan is None) == (kernel.act.has_tensor_scale or channels % 32 > 0)
        if plan is not None:
            functions[f"pixels_{name}"] = kernel.quantize(channels, rule)
            functions[f"gather_{name}"] = gather_windows(shape, plan)
    module = compiled(detect(), **functions)
    for size in SIZES:
        x = pixels(shape, size)
        rows = rows_of(x, shape.name)
        m = len(rows)
        for pair, kernel in kernels.items():
            name = "_".join(pair)
            expected = operands(kernel, module[f"rows_{name}"], rows, m, k)
            found = operands(kernel, module[f"windows_{name}"], x, m, k)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
            if f"gather_{name}" not in functions:
                continue
            flat = x.reshape(-1, channels)
            specs = kernel.quantized_specs(channels)
            parts = call(
                module[f"pixels_{name}"], [flat], *[((len(flat), *s), dtype) for s, dtype in specs]
            )
            images = [part.reshape(*size, -1) for part in parts]
            specs = [((m, *s), dtype) for s, dtype in kernel.quantized_specs(k)]
            found = trimmed(kernel, call(module[f"gather_{name}"], images, *specs), k)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
