"""Rows that are computed on their way into a quantizer: what a `Prologue` says, then its bits."""

from dataclasses import replace

import numpy as np
import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.ir.prologue import Prologue
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cuda import prologue_rows
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.emulator.build import emulate
from tests.targets.cuda.reference import ROUNDING

M = 5
LAYER_NORM = Prologue(norm="layer_norm", epsilon=1e-5)
RMS_NORM = Prologue(norm="rms_norm", epsilon=1e-6)
KEPT = (  # each with its row, by which the operands are judged
    replace(LAYER_NORM, keeps_row=True),
    replace(LAYER_NORM, combine="add", keeps_sum=True, keeps_row=True),
    replace(RMS_NORM, combine="add", keeps_sum=True, keeps_row=True),
    Prologue(activation="silu", combine="multiply", keeps_row=True),
    Prologue(combine="add", keeps_row=True),
    Prologue(activation="relu", keeps_row=True),
)
TURNED = tuple(replace(p, rotation=Rotation(16, seed=1)) for p in KEPT[:4])
WIDTHS = {77: KEPT, 200: KEPT, 208: TURNED, 1304: KEPT[1:4]}  # of one warp to eight, and more
KERNELS = (("sm_80", "mxint8"), ("sm_80", "nvfp4"), ("sm_120a", "nvfp4"))
GAINS = {"none": 0, "rms_norm": 1, "layer_norm": 2}


def named(k: int, prologue: Prologue) -> str:
    return f"q{k}_{prologue.name}{'_kept' * prologue.keeps_row}"


@pytest.fixture(scope="module", params=KERNELS, ids=str)
def built(request):
    arch, fmt = request.param
    kernel = kernel_for(FORMATS[fmt], FORMATS[fmt], arch_named(arch))
    rule = kernel.act.default_rule
    functions = {f"plain{k}": kernel.quantize(k, rule) for k in WIDTHS}
    for k, prologues in WIDTHS.items():
        for kept in prologues:
            functions[named(k, kept)] = kernel.quantize(k, rule, kept)
        without = replace(prologues[1], keeps_row=False, keeps_sum=False)
        functions[named(k, without)] = kernel.quantize(k, rule, without)
    return kernel, emulate(functions, arch)


def inputs_of(prologue, k):
    rng = np.random.default_rng(k)
    rows = [rng.standard_normal((M, k)) * 3 + 1 for _ in range(prologue.rows)]
    rows += [rng.standard_normal(k) for _ in range(GAINS[prologue.norm])]
    rows[0][0] = 0
    rows[0][1] *= 1e-10
    rows[0][2] *= 1e10
    return [row.astype(np.float32) for row in rows]


def run(functions, name, kernel, prologue, k, seed=0):
    """(sum, row, operands); None for what is not kept."""
    kept = [np.full((M, k), np.nan, np.float32) for _ in range(prologue.kept)]
    operands = [
        np.full(tuple(map(int, shape)), 7, kind) for shape, kind in kernel.quantized_shapes(M, k)
    ]
    functions(name, *inputs_of(prologue, k), *kept, *operands, seed=seed)
    total = kept.pop(0) if prologue.keeps_sum else None
    return total, kept.pop(0) if prologue.keeps_row else None, operands


def expected(prologue, k):
    """(sum, row) in float64, and how far a row may be from it.

    A sum of k terms in halves and by warps is off by at most log2(128) + 8 + k / 1024 + 2 roundings
    of the magnitudes; statistics enter the row with a relative error of that, and the dozen other
    operations round once each.
    """
    x, *rest = (row.astype(np.float64) for row in inputs_of(prologue, k))
    with np.errstate(over="ignore"):
        silu = x / (1 + np.exp(-x))
    x = {"none": x, "relu": np.maximum(x, 0), "silu": silu}[prologue.activation]
    if prologue.combine != "none":
        x = x + rest.pop(0) if prologue.combine == "add" else x * rest.pop(0)
    roundings = 17 + k / 1024 + 12
    if prologue.norm == "none":
        return x, x, roundings * ROUNDING * np.abs(x)
    mean = x.mean(axis=-1, keepdims=True) if prologue.norm == "layer_norm" else 0
    scale = 1 / np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + prologue.epsilon)
    gamma, beta = rest[0], rest[1] if len(rest) > 1 else np.zeros(k)
    row = (x - mean) * scale * gamma + beta
    size = (np.abs(x) + np.abs(x).mean(axis=-1, keepdims=True)) * scale * np.abs(gamma)
    return x, row, roundings * ROUNDING * (size + np.abs(beta))


@pytest.mark.parametrize("k", WIDTHS)
def test_rows_are_those_of_the_definition_and_operands_their_bits(built, k) -> None:
    kernel, functions = built
    for prologue in WIDTHS[k]:
        name = named(k, prologue)
        total, row, operands = run(functions, name, kernel, prologue, k)
        wanted_total, wanted_row, tolerance = expected(prologue, k)
        if total is not None:
            np.testing.assert_array_equal(total, wanted_total.astype(np.float32), name)
        assert (np.abs(row - wanted_row) <= tolerance).all(), name
        turned = row if prologue.rotation is None else prologue.rotation.apply(row)
        plain = [np.full_like(operand, 5) for operand in operands]
        functions(f"plain{k}", turned, *plain)
        for mine, reference in zip(operands, plain, strict=True):
            np.testing.assert_array_equal(mine, reference, name)


@pytest.mark.parametrize("k", WIDTHS)
def test_what_is_kept_changes_no_bit_and_neither_does_the_order_of_threads(built, k) -> None:
    kernel, functions = built
    kept = WIDTHS[k][1]
    without = replace(kept, keeps_row=False, keeps_sum=False)
    _, _, wanted = run(functions, named(k, kept), kernel, kept, k)
    for seed in (1, 2):
        _, _, operands = run(functions, named(k, without), kernel, without, k, seed)
        for mine, reference in zip(operands, wanted, strict=True):
            np.testing.assert_array_equal(mine, reference)


def test_rows_too_long_to_be_held_have_the_same_bits(monkeypatch) -> None:
    kernel, k = kernel_for(FORMATS["nvfp4"], FORMATS["nvfp4"], arch_named("sm_80")), 200
    prologues = (KEPT[1], KEPT[3])
    functions = {f"held_{p.name}": kernel.quantize(k, "absmax", p) for p in prologues}
    monkeypatch.setattr(prologue_rows, "HELD", 100)
    functions |= {f"again_{p.name}": kernel.quantize(k, "absmax", p) for p in prologues}
    emulated = emulate(functions)
    for prologue in prologues:
        held = run(emulated, f"held_{prologue.name}", kernel, prologue, k)
        again = run(emulated, f"again_{prologue.name}", kernel, prologue, k)
        for mine, reference in zip([*again[:2], *again[2]], [*held[:2], *held[2]], strict=True):
            np.testing.assert_array_equal(mine, reference)


def test_a_reduction_without_its_barrier_fails() -> None:
    kernel, k = kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], arch_named("sm_80")), 520
    prologue = replace(LAYER_NORM, keeps_row=True)
    functions = emulate({"q": kernel.quantize(k, "floor", prologue)})
    _, wanted, _ = run(functions, "q", kernel, prologue, k)
    assert len(functions.waits) == 2  # of the mean, of the squares
    for number, _what in enumerate(functions.waits):
        results = []
        for seed in range(8):
            kept = np.full((M, k), np.nan, np.float32)
            operands = [np.zeros(tuple(map(int, s)), t) for s, t in kernel.quantized_shapes(M, k)]
            arrays = [*inputs_of(prologue, k), kept, *operands]
            ends = functions.ends("q", *arrays, seed=seed, without=number)
            results.append(ends and np.array_equal(kept, wanted))
        assert not all(results), number
