import numpy as np
import pytest

from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cuda.attention_fused import LONGEST, attention_kernel, fits
from lbcompiler.targets.cuda.attention_parts import MOST
from tests.emulator.build import emulate
from tests.targets.cuda.attention_cases import (
    CASES,
    TOLERANCE,
    described,
    expected,
    inputs,
    output,
    scratch,
)

SEEDS = range(3)


@pytest.mark.parametrize("few", [None, False])
@pytest.mark.parametrize("name", CASES)
def test_the_same_as_softmax_between_two_products(name: str, few: bool | None) -> None:
    case = CASES[name]
    given, out = list(inputs(case)), output(case)
    kernel = emulate({"attention": attention_kernel(described(case, few))})
    for seed in SEEDS:
        kernel("attention", *given, out, *scratch(case, few), seed=seed)
        np.testing.assert_allclose(out, expected(case, *given), rtol=0, atol=4 * TOLERANCE)


def test_parts_of_the_keys_give_the_same_bits_in_any_order() -> None:
    case = CASES["three queries of many more keys"]
    given, (parts,) = list(inputs(case)), scratch(case)
    kernel, outs = emulate({"attention": attention_kernel(described(case))}), []
    for seed in SEEDS:
        outs.append(output(case))
        kernel("attention", *given, outs[-1], parts, seed=seed)
        np.testing.assert_array_equal(outs[-1], outs[0])
    tiles, size = -(-530 // 16), 2
    used = np.isfinite(parts.reshape(MOST, 2, *parts.shape[1:])[:, :, :, 0]).all(axis=(1, 2, 3))
    assert used.tolist() == [part * size < tiles for part in range(MOST)]


def test_a_part_whose_keys_are_all_masked_counts_nothing() -> None:
    case = (1, 1, 96, 1, 1, 16, 16, False, "K")
    given, out = list(inputs(case)), output(case)
    given[-1] = np.zeros((1, 1, 1, 96), np.float32)
    given[-1][..., 32:64] = -np.inf
    kernel = emulate({"attention": attention_kernel(described(case))})
    kernel("attention", *given, out, *scratch(case))
    np.testing.assert_allclose(out, expected(case, *given), rtol=0, atol=4 * TOLERANCE)
    given[-1][:] = -np.inf
    kernel("attention", *given, out, *scratch(case))
    assert np.isnan(out).all()


def test_heads_within_a_larger_tensor_in_another_order() -> None:
    """q, k and v are heads 0..1, 2 and 3 of one tensor (batch, heads, positions, depth)."""
    whole = np.random.default_rng(1).standard_normal((1, 4, 9, 16)).astype(np.float32)
    parts = [Heads(count, "BHSD", first, 4) for count, first in ((2, 0), (1, 2), (1, 3))]
    what = Attention(*parts, 16, 16, 0.25)  # few is False
    case = (1, 9, 9, 2, 1, 16, 16, False, None)
    out = output(case)
    emulate({"attention": attention_kernel(what)})("attention", whole, whole, whole, out)
    q, k, v = (whole[:, a:b].transpose(0, 2, 1, 3) for a, b in ((0, 2), (2, 3), (3, 4)))
    np.testing.assert_allclose(out, expected(case, q, k, v), rtol=0, atol=4 * TOLERANCE)


def test_a_query_that_sees_nothing_is_nan() -> None:
    case = (1, 3, 5, 1, 1, 8, 8, False, "QK")
    given, out = list(inputs(case)), output(case)
    given[-1] = np.zeros((1, 1, 3, 5), np.float32)
    given[-1][0, 0, 1] = -np.inf
    kernel = emulate({"attention": attention_kernel(described(case))})
    kernel("attention", *given, out, *scratch(case))
    assert np.isnan(out[0, 1]).all()
    assert np.isfinite(out[0, [0, 2]]).all()


def test_a_kernel_without_one_of_its_waits_fails() -> None:
    case = (1, 40, 100, 1, 1, 16, 16, False, None)
    given, wanted = list(inputs(case)), expected(case, *inputs(case))
    kernel = emulate({"attention": attention_kernel(described(case, few=False))})

    def is_right(seed: int, without: int) -> bool:
        out = output(case)
        ends = kernel.ends("attention", *given, out, seed=seed, without=without)
        return ends and np.allclose(out, wanted, rtol=0, atol=4 * TOLERANCE)

    assert len(kernel.waits) == 3  # keys are there; weights of a warp are; both are read
    for number, what in enumerate(kernel.waits):
        assert not all(is_right(seed, number) for seed in range(20)), what


def test_heads_that_are_too_long() -> None:
    assert fits(described(CASES["one query of many keys"]))
    assert not fits(described((1, 1, 1, 1, 1, LONGEST + 1, 8, False, None)))
