"""Quantized activations, bit for bit those of the reference."""

import numpy as np
import pytest

from lbcompiler.compiler import check_fits
from lbcompiler.config import make_config
from lbcompiler.errors import ConfigError
from lbcompiler.formats import FORMATS
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets import targets_named
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.targets.cuda.rounding import RULES
from tests.emulator.build import emulate
from tests.targets.cuda.reference import SM_80, activation_operands, from_bfloat16

K = 77  # no multiple of four: scalar loads; a short last block
ROTATED_K = 1184  # more pieces than warps
ROTATIONS = (Rotation(2, 3), Rotation(32), Rotation(32, 5), Rotation(16, 1))
ROTATED = [
    (name, rotation)
    for name in FORMATS
    for rotation in (ROTATIONS if name in ("nvfp4", "mxint8") else ROTATIONS[2:3])
]
CASES = [(name, rule) for name, fmt in FORMATS.items() for rule in RULES[fmt.scale]]


def rows(k: int) -> np.ndarray:
    """Large, small, zero and special ones."""
    rng = np.random.default_rng(k)
    x = rng.standard_normal((10, k)).astype(np.float32)
    x *= np.float32(10) ** rng.integers(-3, 4, x.shape).astype(np.float32)
    x[1] = 0
    x[1, 3] = -0.0
    x[2, 5] = np.inf
    x[3, 40] = -np.nan
    x[4] *= np.float32(1e-38)
    x[5] *= np.float32(1e34)
    x[6, :32] = -0.0
    x[7] = np.float32(2.0) ** rng.integers(-20, 20, k)  # ties of the rules
    x[8] = np.ldexp(np.float32(1), -149)
    return x


def same_bits(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    both_nan = np.isnan(from_bfloat16(got)) & np.isnan(from_bfloat16(wanted))
    return (got == wanted) | both_nan


@pytest.fixture(scope="module")
def functions():
    kernels = {
        f"{n}_{r}": kernel_for(FORMATS[n], FORMATS[n], SM_80).quantize(K, r) for n, r in CASES
    }
    for name, rotation in ROTATED:
        kernel = kernel_for(FORMATS[name], FORMATS[name], SM_80)
        rule = RULES[kernel.act.scale][0]
        kernels[f"{name}_{rotation.name}"] = kernel.quantize(
            ROTATED_K, rule, Prologue(rotation=rotation)
        )
    kernels["split"] = kernel_for(FORMATS["nvfp4"], None, SM_80).quantize(K, "absmax")
    return emulate(kernels)


@pytest.mark.parametrize(("name", "rule"), CASES)
def test_every_format_and_rule(functions, name, rule) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS[name], SM_80)
    check(functions, f"{name}_{rule}", kernel, rows(K), rows(K), rule)


@pytest.mark.parametrize(("name", "rotation"), ROTATED, ids=str)
def test_rotated_first(functions, name, rotation) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS[name], SM_80)
    x = rows(ROTATED_K)
    rule = RULES[kernel.act.scale][0]
    check(functions, f"{name}_{rotation.name}", kernel, x, rotation.apply(x), rule)


def check(functions, function, kernel, x, rotated, rule) -> None:
    wanted = activation_operands(kernel, rotated, rule)
    got = [np.full_like(operand, 7) for operand in wanted]
    functions(function, x, *got)
    assert same_bits(got[0], wanted[0]).all()
    for scale, reference in zip(got[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(scale, reference)
    assert [g.shape[1:] for g in got] == [shape for shape, _ in kernel.quantized_specs(x.shape[1])]


def test_without_a_format_two_bfloat16_hold_sixteen_bits(functions) -> None:
    kernel = kernel_for(FORMATS["nvfp4"], None, SM_80)
    x = rows(K)
    values = np.full((10, 2, 128), 7, np.uint16)
    functions("split", x, values)
    wanted = activation_operands(kernel, x)[0]
    assert same_bits(values, wanted).all()
    finite = np.isfinite(x)
    total = from_bfloat16(values).astype(np.float64).sum(axis=1)[:, :K]
    error = np.abs(total[finite] - x[finite])
    # high is cut after 8 bits, low rounded after 8 more; bfloat16 ends at 2^-133
    assert (error <= np.maximum(np.abs(x[finite]) * 2.0**-16, 2.0**-134)).all()


def test_a_rule_that_searches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mxfp4 .* 'mse', which searches; .* floor, rceil"):
        kernel_for(FORMATS["mxfp4"], FORMATS["mxfp4"], SM_80).quantize(64, "mse")


def test_a_rotation_that_is_too_large_is_refused_before_anything_is_measured() -> None:
    def check(target: str, size: int) -> None:
        config = make_config({"target": target, "hadamard": size, "quantizer": "mse"})
        check_fits(config, targets_named(target)[0])

    check("cuda:sm_80", 128)
    check("cpu", 256)
    with pytest.raises(ConfigError, match=r"--hadamard 256: target cuda .* a size up to 128"):
        check("cuda:sm_80", 256)


@pytest.mark.parametrize(("size", "k"), [(256, 512), (32, 48)])
def test_a_rotation_it_cannot_do_is_refused(size, k) -> None:
    with pytest.raises(ConfigError, match=f"hadamard{size}"):
        kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], SM_80).quantize(
            k, "absmax", Prologue(rotation=Rotation(size))
        )
