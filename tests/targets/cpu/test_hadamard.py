"""The kernel of a rotation equals `Rotation.apply`, bit for bit, on every instruction set."""

from typing import Any

import numpy as np
import pytest

from lbcompiler.ir import ops
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cpu.hadamard import hadamard_kernel
from lbcompiler.targets.cpu.isa import detect
from tests.targets.cpu.reference import WITHOUT_PRODUCTS, call, compiled
from tests.targets.cpu.relax_runner import B, L, function, normal

# within a vector; one vector; several; K of whole groups, and of what is left behind them;
# blocks larger than the registers
CASES = [(2, 10), (4, 68), (8, 40), (16, 16), (16, 176), (32, 32), (32, 96), (32, 416), (64, 192)]
CASES += [(128, 384), (256, 512), (512, 1024), (2048, 2048)]


def corner_rows(k: int) -> np.ndarray:
    x = normal(9, k, seed=k) * np.exp2(np.random.default_rng(k).integers(-9, 9, (9, k)))
    x[0], x[1] = 0, -0.0
    x[2, k // 2], x[3, k - 1], x[4] = np.nan, np.inf, 3e38
    x[5] *= 1e-42
    x[6, ::2] = -0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("isa", WITHOUT_PRODUCTS, ids=lambda isa: isa.name)
def test_rows_are_those_of_the_definition(isa: Any) -> None:
    rotations = {
        f"r{size}_{seed}_{k}": (Rotation(size, seed), k) for size, k in CASES for seed in (None, 9)
    }
    module = compiled(isa, **{name: hadamard_kernel(*case) for name, case in rotations.items()})
    for name, (rotation, k) in rotations.items():
        x = corner_rows(k)
        (y,) = call(module[name], [x], (x.shape, "float32"))
        wanted = rotation.apply(x)
        np.testing.assert_array_equal(y, wanted, name)
        known = ~np.isnan(wanted)
        np.testing.assert_array_equal(np.signbit(y)[known], np.signbit(wanted)[known], name)


@pytest.mark.parametrize("lead", [[], [B], [2, B, L]], ids=["row", "matrix", "batch"])
def test_a_hadamard_that_stands_alone_runs(lead: list[Any]) -> None:
    rotation = Rotation(32, seed=1)
    run = function(lambda x: ops.hadamard(x, rotation), [*lead, 96])
    x = normal(*[{B: 3, L: 5}.get(d, d) for d in lead], 96)
    np.testing.assert_array_equal(run(x), rotation.apply(x))
    assert detect() is run.isa
