"""Activations quantized in the kernel equal `BlockFormat.quantize`, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cpu.block_scales import RULES
from lbcompiler.targets.cpu.isa import AVX512_AMX, AVX512_VNNI, detect
from lbcompiler.targets.cpu.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cpu.layout import padded
from lbcompiler.targets.cpu.sources import PrologueRows
from tests.targets.cpu.reference import (
    HERE,
    WITHOUT_PRODUCTS,
    call,
    compiled,
    exact_values,
    integer_operands,
    pair_operands,
)

K = 77  # two whole blocks of 32 and a short one, four of 16 and a short one
LONG = 16 * 32 + 15 * 32 + 5  # blocks in sixteens, eight, four, two, one, and a short one
# rotations are the same code for AVX-512 with and without products, what they end in is not
ROTATING = [isa for isa in HERE if isa not in (AVX512_AMX, AVX512_VNNI)]
CASES = [(fmt.name, rule) for fmt in FORMATS.values() for rule in RULES[fmt.scale]]
# a weight whose block differs, one whose zero point and multiplier do, and one in float
WEIGHTS = ("mxfp4", "nvint4", "mxfp8")


def corner_rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, K)) * np.exp(8 * rng.standard_normal((64, 1)))
    x[0] = 0
    x[1] = -0.0
    x[2, 5], x[3, 40], x[4, 76] = np.nan, np.inf, -np.inf
    x[5] = np.nan
    x[6] = 2.0**-149
    x[7] = 2.0**-127 * rng.standard_normal(K)
    x[8] = 3.4e38 * rng.uniform(-1, 1, K)
    x[9] = np.float32(3.4028235e38)
    x[10, 16:48] = 0
    x[11] = rng.choice([-448, 448, 0.015625, -0.0009765625, 6, 5, 2.5, 0.25, -0.75, 3.5], K)
    ties = np.concatenate([np.arange(-8, 8.5, 0.25), np.arange(-1, 2, 0.25)])
    for row, limit in enumerate((127, 31, 7, 7.5, 6, 28, 448, 57344), start=12):
        x[row] = np.resize(ties, K) * rng.choice([1, 0.125, 1 / 64])
        x[row, ::32] = limit  # a scale of one, or next to it
        x[row + 8] = rng.integers(-130, 131, K) * 0.5
        x[row + 8, ::16] = np.nextafter(np.float32(limit), np.float32(1e9))
    x[28:40] = 2.0 ** rng.integers(-149, 128, (12, 1)) * rng.uniform(-1, 1, (12, K))
    return x.astype(np.float32)


def check(
    kernel: LinearKernel, function, x: np.ndarray, rule: str, rotation: Rotation | None = None
) -> None:
    """Every operand of the kernel against the format's reference, of x or of x rotated."""
    specs = [((len(x), *shape), dtype) for shape, dtype in kernel.quantized_specs(x.shape[1])]
    operands = call(function, [x], *specs)
    x = x if rotation is None else rotation.apply(x)
    fmt, q = kernel.act, kernel.act.quantize(x, rule, per_row=True)
    if kernel.quantizer.endswith("_pairs"):
        check_pairs(kernel, operands, x, q)
        return
    if not kernel.is_integer:
        if fmt.has_tensor_scale:
            np.testing.assert_array_equal(operands.pop(), q.tensor_scale)
        values = exact_values(q, fmt)
        np.testing.assert_array_equal(operands[0], values)
        np.testing.assert_array_equal(
            np.signbit(operands[0]), np.signbit(values) & ~np.isnan(values)
        )
        return
    expected = integer_operands(kernel, q, x)
    width = padded(x.shape[1], kernel.block)
    np.testing.assert_array_equal(operands[0][:, :width], expected[0][:, :width])
    for operand, wanted in zip(operands[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(operand, wanted)


def check_pairs(kernel: LinearKernel, operands: list, x: np.ndarray, q) -> None:
    """Pairs hold code * scale, or the bare code where the scale is not plain."""
    expected = pair_operands(kernel, q)
    bits = [np.stack([o[0] & -(1 << 16), o[0] << 16], -1) for o in (operands, expected)]
    values, wanted = (b.view(np.float32).reshape(len(x), -1)[:, : x.shape[1]] for b in bits)
    is_zero = np.repeat(~padded_blocks(x, kernel.act.block).any(-1), kernel.act.block, -1)
    if len(expected) == 3:  # a block of zeros may have any scale
        is_zero_block = ~padded_blocks(x, kernel.act.block).any(-1)
        scales = [np.where(is_zero_block, np.float32(1), o[1]) for o in (operands, expected)]
        np.testing.assert_array_equal(*scales)
        flags = (scales[0] != 1).any(-1, keepdims=True)
        np.testing.assert_array_equal(operands[2] != 0, flags)
    if len(expected) == 2:
        np.testing.assert_array_equal(operands[1], expected[1])
    np.testing.assert_array_equal(
        np.where(is_zero[:, : x.shape[1]], 0, values), np.where(is_zero[:, : x.shape[1]], 0, wanted)
    )


def padded_blocks(x: np.ndarray, block: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)


@pytest.mark.parametrize(
    ("isa", "weight"),
    [(isa, w) for isa in HERE for w in (WEIGHTS if isa is HERE[0] else WEIGHTS[:1])],
    ids=lambda value: getattr(value, "name", value),
)
def test_corner_rows(isa, weight) -> None:
    kernels = {case: kernel_for(FORMATS[weight], FORMATS[case[0]], isa) for case in CASES}
    module = compiled(
        isa, **{f"{name}_{rule}": kernels[name, rule].quantize(K, rule) for name, rule in CASES}
    )
    for name, rule in CASES:
        check(kernels[name, rule], module[f"{name}_{rule}"], corner_rows(), rule)


@pytest.mark.parametrize("isa", WITHOUT_PRODUCTS, ids=lambda isa: isa.name)
def test_long_corner_rows(isa) -> None:
    """Every block of a group gets its own maximum, scale, sum and flag."""
    x = np.resize(corner_rows().T, (LONG, 64)).T * np.exp2(-(np.arange(LONG) // 16 % 7))
    x = x.astype(np.float32)
    for case in (("mxfp4", "rceil"), ("nvint4", "absmax"), ("nvfp4", "four_over_six")):
        kernel = kernel_for(FORMATS["nvfp4"], FORMATS[case[0]], isa)
        module = compiled(isa, quantize=kernel.quantize(LONG, case[1]))
        check(kernel, module["quantize"], x, case[1])


@pytest.mark.parametrize("isa", ROTATING, ids=lambda isa: isa.name)
def test_rotated_corner_rows(isa) -> None:
    """A rotation in the kernel is that of the reference, in every kind of operands."""
    rotations = [(Rotation(32), 96), (Rotation(16, seed=4), 80), (Rotation(64), 192)]
    cases = [("mxint8", "mxint8", "rceil"), ("nvfp4", "nvint4", "absmax")]
    cases += [("nvfp4", "nvfp4", "four_over_six"), ("mxfp8", "nvint4", "four_over_six")]
    cases += [("mxfp8", "mxfp8", "rceil"), ("mxint8", "mxfp8_e5m2", "floor")]
    functions, checks = {}, []
    for rotation, k in rotations:
        source = PrologueRows(Prologue(rotation=rotation))
        for weight, act, rule in cases:
            kernel = kernel_for(FORMATS[weight], FORMATS[act], isa)
            name = f"{rotation.name}_{weight}_{act}"
            functions[name] = kernel.quantize(k, rule, source)
            checks.append((kernel, name, k, rule, rotation))
    module = compiled(isa, **functions)
    for kernel, name, k, rule, rotation in checks:
        x = np.resize(corner_rows().T, (k, 64)).T.copy()
        check(kernel, module[name], x, rule, rotation)


@pytest.mark.parametrize("k", [1, 48, 64])
@pytest.mark.parametrize("weight", ["nvfp4", "mxfp8"])
def test_any_k(k, weight) -> None:
    kernels = [kernel_for(FORMATS[weight], fmt, detect()) for fmt in FORMATS.values()]
    functions = {q.act.name: q.quantize(k, q.act.default_rule) for q in kernels}
    module = compiled(detect(), **functions)
    x = np.random.default_rng(k).standard_normal((3, k)).astype(np.float32)
    for kernel in kernels:
        check(kernel, module[kernel.act.name], x, kernel.act.default_rule)


@pytest.fixture(scope="module")
def mxfp4_and_nvint4():
    kernels = [kernel_for(FORMATS[name], FORMATS[name], detect()) for name in ("mxfp4", "nvint4")]
    functions = {k.act.name: k.quantize(40, k.act.default_rule) for k in kernels}
    return kernels, compiled(detect(), **functions)


@settings(deadline=None, max_examples=60)
@given(x=arrays(np.float32, (4, 40), elements=st.floats(width=32)))
def test_any_float(mxfp4_and_nvint4, x) -> None:
    kernels, module = mxfp4_and_nvint4
    for kernel in kernels:
        check(kernel, module[kernel.act.name], x, kernel.act.default_rule)


@pytest.mark.parametrize(("name", "rule"), [("mxfp4", "mse"), ("nvfp4", "sweep")])
def test_a_rule_that_searches_is_for_weights(name, rule) -> None:
    with pytest.raises(ConfigError, match=rule):
        kernel_for(FORMATS["mxint8"], FORMATS[name], detect()).quantize(32, rule)
