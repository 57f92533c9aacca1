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
from tests.targets.cuda.prologue_cases import KEPT, LAYER_NORM, M, expected, inputs_of

TURNED = tuple(replace(p, rotation=Rotation(16, seed=1)) for p in KEPT[:4])
WIDTHS = {77: KEPT, 200: KEPT, 208: TURNED, 1304: KEPT[1:4]}  # of one warp to eight, and more
KERNELS = (("sm_80", "mxint8"), ("sm_80", "nvfp4"), ("sm_120a", "nvfp4"))


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


def run(functions, name, kernel, prologue, k, seed=0):
    """(sum, row, operands); None for what is not kept."""
    kept = [np.full((M, k), np.nan, np.float32) for _ in range(prologue.kept)]
    operands = [
        np.full(tuple(map(int, shape)), 7, kind) for shape, kind in kernel.quantized_shapes(M, k)
    ]
    functions(name, *inputs_of(prologue, k), *kept, *operands, seed=seed)
    total = kept.pop(0) if prologue.keeps_sum else None
    return total, kept.pop(0) if prologue.keeps_row else None, operands


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


@pytest.mark.parametrize("fmt", ["mxint8", "nvfp4"])
def test_a_reduction_without_its_barrier_fails(fmt) -> None:
    kernel, k = kernel_for(FORMATS[fmt], FORMATS[fmt], arch_named("sm_80")), 520
    prologue = replace(LAYER_NORM, keeps_row=True)
    functions = emulate({"q": kernel.quantize(k, kernel.act.default_rule, prologue)})
    _, row, operands = run(functions, "q", kernel, prologue, k)
    assert len(functions.waits) == 2 + kernel.act.has_tensor_scale  # mean; squares; row maximum
    for number, _what in enumerate(functions.waits):
        results = []
        for seed in range(8):
            got = [np.full_like(array, 7) for array in (row, *operands)]
            ends = functions.ends("q", *inputs_of(prologue, k), *got, seed=seed, without=number)
            pairs = zip(got, (row, *operands), strict=True)
            results.append(ends and all(np.array_equal(a, b) for a, b in pairs))
        assert not all(results), number
