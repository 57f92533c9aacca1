"""Block-scaled GEMMs and quantization of sm_120a, as the emulator has the instruction."""

import numpy as np
import pytest

from lbcompiler.formats import FORMATS, stored_format
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.targets.cuda.layout_native import (
    pack_codes,
    pair_of,
    rows_of_bytes,
    rows_of_scales,
    unpack_codes,
)
from lbcompiler.targets.cuda.rounding import RULES
from tests.emulator.build import emulate
from tests.targets.cuda.reference import SMALL, sum_tolerance

SM_120A = arch_named("sm_120a")
PAIRS = [  # (weights, activations)
    ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"),
    ("mxfp4_scaled", "mxfp4"),
    ("mxfp8", "mxfp8"),
    ("mxfp6", "mxfp8_e5m2"),
    ("mxfp6_e3m2", "mxfp6"),
    ("mxfp8_e5m2", "mxfp6_e3m2"),
]
N, K = 37, 200
names = [f"{w}_{a}" for w, a in PAIRS]


def kernel_of(weight: str, act: str):
    return kernel_for(stored_format(weight), FORMATS[act], SM_120A)


@pytest.fixture(scope="module")
def functions():
    kernels = {}
    for name, (weight, act) in zip(names, PAIRS, strict=True):
        kernel = kernel_of(weight, act)
        kernels[name] = kernel.gemm(N, K, bias=True, config=SMALL)
        rule = RULES[kernel.act.scale][-1]
        kernels[f"q_{name}"] = kernel.quantize(K, rule)
    return emulate(kernels, SM_120A.name)


@pytest.mark.parametrize(("weight", "act"), PAIRS, ids=names)
def test_codes_come_back(weight, act) -> None:
    pair = pair_of(stored_format(weight), FORMATS[act])
    bits = pair.weight.element.bits
    codes = np.random.default_rng(0).integers(0, 2**bits, (37, 300), dtype=np.uint8)
    np.testing.assert_array_equal(unpack_codes(pack_codes(codes, pair), 37, 300, pair), codes)


@pytest.mark.parametrize(("weight", "act"), PAIRS, ids=names)
@pytest.mark.parametrize("m", [1, 16, 45])
def test_is_the_reference_up_to_the_order_of_the_sum(functions, weight, act, m) -> None:
    kernel, rng = kernel_of(weight, act), np.random.default_rng(m)
    assert kernel.route == "native"
    w = kernel.weight.quantize(
        rng.standard_normal((N, K)).astype(np.float32), tensor_scale=np.float32(4 / 3)
    )
    q = kernel.act.quantize(rng.standard_normal((m, K)).astype(np.float32), per_row=True)
    operands = [rows_of_bytes(q.codes, kernel.pair), rows_of_scales(q.scales, kernel.pair, K)]
    if q.tensor_scale is not None:
        operands.append(np.asarray(q.tensor_scale, np.float32))
    assert [(o.shape[1:], str(o.dtype)) for o in operands] == kernel.quantized_specs(K)
    packed = kernel.pack(w)
    assert [(p.shape, str(p.dtype)) for p in packed] == kernel.packed_specs(N, K)
    bias, y = rng.standard_normal(N).astype(np.float32), np.full((m, N), np.nan, np.float32)
    functions(f"{weight}_{act}", *operands, *packed, bias, y, seed=m)
    x, values = (
        f.dequantize(v).astype(np.float64) for f, v in ((kernel.act, q), (kernel.weight, w))
    )
    wanted = x @ values.T + bias
    assert (np.abs(y - wanted) <= sum_tolerance(kernel, x, values, bias)).all()


@pytest.mark.parametrize(("weight", "act"), PAIRS, ids=names)
def test_quantizes_as_the_reference(functions, weight, act) -> None:
    kernel = kernel_of(weight, act)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((9, K)).astype(np.float32)
    x *= np.float32(10) ** rng.integers(-3, 4, x.shape).astype(np.float32)
    x[1], x[1, 3] = 0, -0.0
    x[2, 5], x[3, 40] = np.inf, np.nan
    x[4] *= np.float32(1e-38)
    x[5] *= np.float32(1e34)
    q = kernel.act.quantize(x, RULES[kernel.act.scale][-1], per_row=True)
    wanted = [rows_of_bytes(q.codes, kernel.pair), rows_of_scales(q.scales, kernel.pair, K)]
    if q.tensor_scale is not None:
        wanted.append(np.asarray(q.tensor_scale, np.float32))
    got = [np.full_like(operand, 7) for operand in wanted]
    functions(f"q_{weight}_{act}", x, *got)
    for mine, reference in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_a_kernel_without_one_of_its_waits_fails() -> None:
    fmt, n, k = FORMATS["mxfp4"], 32, 1024
    kernel = kernel_for(fmt, fmt, SM_120A)
    functions = emulate({"gemm": kernel.gemm(n, k, bias=False, config=SMALL)}, SM_120A.name)
    rows = dict(zip(dict(functions.waits), (8, 40), strict=True))  # by kernel
    rng = np.random.default_rng(0)
    w, x = (
        fmt.quantize(rng.integers(-6, 7, (r, k)).astype(np.float32))
        for r in (n, max(rows.values()))
    )
    wanted = fmt.dequantize(x) @ fmt.dequantize(w).T  # whole numbers: exact
    operands = rows_of_bytes(x.codes, kernel.pair), rows_of_scales(x.scales, kernel.pair, k)

    def is_right(m: int, seed: int, without: int | None) -> bool:
        given, y = [operand[:m] for operand in operands], np.full((m, n), np.nan, np.float32)
        ends = functions.ends("gemm", *given, *kernel.pack(w), y, seed=seed, without=without)
        return ends and np.array_equal(y, wanted[:m])

    assert all(is_right(m, seed, None) for m in rows.values() for seed in range(4))
    for number, (name, what) in enumerate(functions.waits):
        assert not all(is_right(rows[name], seed, number) for seed in range(8)), (name, what)


def test_a_tensor_scale_makes_no_difference_to_the_instruction_and_the_config() -> None:
    plain, scaled = (kernel_of(weight, "mxfp4") for weight in ("mxfp4", "mxfp4_scaled"))
    assert plain.tuned_as(8) == scaled.tuned_as(8) == plain.name != scaled.name
    assert plain.pair == scaled.pair
    assert plain.default_config(64, 96) == scaled.default_config(64, 96)


@pytest.mark.parametrize(
    ("weight", "act"), [("nvfp4", None), ("mxint8", "mxint8"), ("mxfp4", "mxfp8")]
)
def test_what_no_instruction_multiplies_takes_the_exact_route(weight, act) -> None:
    kernel = kernel_for(FORMATS[weight], FORMATS.get(act), SM_120A)
    assert kernel.route == "exact"
    assert kernel.name.startswith("exact_")
