"""The GEMM and quantization of sm_100a+tcgen05, as the emulator has tensor memory."""

from dataclasses import replace

import numpy as np
import pytest

from lbcompiler.formats import FORMATS, stored_format
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.kernels import kernel_for
from lbcompiler.targets.cuda.layout_native import rows_of_bytes
from lbcompiler.targets.cuda.layout_tcgen05 import pack_scales, unpack_scales
from lbcompiler.targets.cuda.rounding import RULES
from tests.emulator.build import emulate
from tests.targets.cuda.reference import sum_tolerance

SM_100A = arch_named("sm_100a+tcgen05")
PAIRS = [  # (weights, activations)
    ("nvfp4", "nvfp4"),
    ("mxfp4_scaled", "mxfp4"),
    ("mxfp8", "mxfp8_e5m2"),
]
N, K = 131, 600  # two blocks of columns; three tiles of K in 4 bits, five in 8
names = [f"{w}_{a}" for w, a in PAIRS]


def kernel_of(weight: str, act: str):
    return kernel_for(stored_format(weight), FORMATS[act], SM_100A)


def config_of(kernel):
    return replace(kernel.default_config(N, K), stages=2, few_stages=2, wide_stages=2)


@pytest.fixture(scope="module")
def functions():
    kernels = {}
    for name, (weight, act) in zip(names, PAIRS, strict=True):
        kernel = kernel_of(weight, act)
        kernels[name] = kernel.gemm(N, K, bias=True, epilogue="relu", config=config_of(kernel))
        kernels[f"q_{name}"] = kernel.quantize(K, RULES[kernel.act.scale][-1])
    return emulate(kernels, SM_100A.device)


def operands_of(kernel, q, k: int) -> list[np.ndarray]:
    operands = [rows_of_bytes(q.codes, kernel.pair), pack_scales(q.scales, kernel.pair, k)]
    if q.tensor_scale is not None:
        operands.append(np.asarray(q.tensor_scale, np.float32))
    return operands


@pytest.mark.parametrize(("weight", "act"), PAIRS, ids=names)
@pytest.mark.parametrize("m", [1, 16, 17, 128, 129, 300])
def test_is_the_reference_up_to_the_order_of_the_sum(functions, weight, act, m) -> None:
    kernel, rng = kernel_of(weight, act), np.random.default_rng(m)
    w = kernel.weight.quantize(
        rng.standard_normal((N, K)).astype(np.float32), tensor_scale=np.float32(4 / 3)
    )
    q = kernel.act.quantize(rng.standard_normal((m, K)).astype(np.float32), per_row=True)
    operands, packed = operands_of(kernel, q, K), kernel.pack(w)
    assert [(o.shape, str(o.dtype)) for o in operands] == kernel.quantized_shapes(m, K)
    assert [(p.shape, str(p.dtype)) for p in packed] == kernel.packed_specs(N, K)
    bias, y = rng.standard_normal(N).astype(np.float32), np.full((m, N), np.nan, np.float32)
    functions(f"{weight}_{act}", *operands, *packed, bias, y, seed=m)
    x, values = (
        f.dequantize(v).astype(np.float64) for f, v in ((kernel.act, q), (kernel.weight, w))
    )
    wanted = np.maximum(x @ values.T + bias, 0)
    assert (np.abs(y - wanted) <= sum_tolerance(kernel, x, values, bias)).all()


@pytest.mark.parametrize(("weight", "act"), PAIRS, ids=names)
def test_quantizes_as_the_reference(functions, weight, act) -> None:
    kernel, m = kernel_of(weight, act), 130
    rng = np.random.default_rng(1)
    x = rng.standard_normal((m, K)).astype(np.float32)
    x *= np.float32(10) ** rng.integers(-3, 4, x.shape).astype(np.float32)
    x[1], x[1, 3] = 0, -0.0
    x[2, 5], x[129, 40] = np.inf, np.nan
    q = kernel.act.quantize(x, RULES[kernel.act.scale][-1], per_row=True)
    codes, scales, *row_scales = operands_of(kernel, q, K)
    got = [np.full_like(operand, 7) for operand in (codes, scales, *row_scales)]
    functions(f"q_{weight}_{act}", x, *got)
    np.testing.assert_array_equal(got[0], codes)
    blocks = kernel.pair.depths(K) * kernel.pair.row_scales
    kept = [unpack_scales(operand, m, blocks) for operand in (got[1], scales)]
    np.testing.assert_array_equal(kept[0], kept[1])  # those of rows beyond M are anything
    for mine, reference in zip(got[2:], row_scales, strict=True):
        np.testing.assert_array_equal(mine, reference)


def test_a_kernel_without_one_of_its_waits_fails() -> None:
    fmt, n, k, m = FORMATS["nvfp4"], 128, 1536, 20
    kernel = kernel_for(fmt, fmt, SM_100A)
    gemm = kernel.gemm(n, k, bias=False, config=config_of(kernel))
    functions = emulate({"gemm": gemm}, SM_100A.device)
    rng = np.random.default_rng(0)
    w, x = (fmt.quantize(rng.standard_normal((r, k)).astype(np.float32)) for r in (n, m))
    scale = np.full((m, 1), x.tensor_scale, np.float32)
    operands = [*operands_of(kernel, x, k)[:2], scale]
    values = [fmt.dequantize(q).astype(np.float64) for q in (x, w)]
    wanted, bound = values[0] @ values[1].T, sum_tolerance(kernel, *values, None)

    def is_right(seed: int, without: int | None) -> bool:
        y = np.full((m, n), np.nan, np.float32)
        ends = functions.ends("gemm", *operands, *kernel.pack(w), y, seed=seed, without=without)
        return ends and bool((np.abs(y - wanted) <= bound).all())

    assert all(is_right(seed, None) for seed in range(4))
    waits = [(i, what) for i, (name, what) in enumerate(functions.waits) if name == "gemm_kernel_1"]
    assert len(waits) == 6  # memory is there; sums done; empty; full; lanes together; sums read
    for number, what in waits:
        if "warp_sync" in what:  # for the compiler's sake: it orders no memory
            continue
        assert not all(is_right(seed, number) for seed in range(8)), what


@pytest.mark.parametrize(("weight", "act"), [("mxfp6", "mxfp6"), ("nvfp4", None)])
def test_what_no_instruction_here_multiplies_takes_the_exact_route(weight, act) -> None:
    kernel = kernel_for(FORMATS[weight], FORMATS.get(act), SM_100A)
    assert kernel.route == "exact"


def test_the_route_is_taken_where_it_is_asked_for() -> None:
    fmt = FORMATS["nvfp4"]
    assert kernel_for(fmt, fmt, SM_100A).name == "native_nvfp4_nvfp4_sm_100a_tcgen05"
    assert kernel_for(fmt, fmt, arch_named("sm_100a")).name == "exact_nvfp4_nvfp4_sm_100a"
