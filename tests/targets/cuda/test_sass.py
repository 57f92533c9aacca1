"""Kernels compiled for their architectures hold the instructions they are for."""

from functools import partial

import pytest

from lbcompiler.formats import FORMATS
from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.cpu.attention_operands import Attention, Heads
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.attention_fused import LONGEST, attention_kernel
from lbcompiler.targets.cuda.kernels import kernel_for
from tests.targets.cuda.sass import can_disassemble, kernels_of

pytestmark = pytest.mark.skipif(not can_disassemble(), reason="no nvcc, cuobjdump or nvdisasm")
N, K = 4096, 4096


def check(kernels, said: str) -> None:
    """No spills, no local memory."""
    assert said.count("0 bytes stack frame, 0 bytes spill stores") == len(kernels)
    for name, kernel in kernels.items():
        assert not kernel.has("STL"), name
        assert not kernel.has("LDL"), name


NEAR = partial(pytest.param, marks=pytest.mark.slow)  # to what the others compile


@pytest.mark.parametrize(
    ("arch", "name", "act"),
    [("sm_80", "nvfp4", "nvfp4"), ("sm_89", "mxint8", None), NEAR("sm_89", "mxfp6", "mxfp6")],
)
def test_the_exact_gemm(arch, name, act) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS.get(act), arch_named(arch))
    kernels, said = kernels_of({"gemm": kernel.gemm(N, K, bias=True, epilogue="gelu")}, kernel.arch)
    check(kernels, said)
    combine = kernels.pop("gemm_kernel_4")  # of the parts that some rows take K in
    assert not combine.has("HMMA")
    assert set(kernels) == {"gemm_kernel", *(f"gemm_kernel_{i}" for i in (1, 2, 3))}
    for one in kernels.values():
        assert one.has("HMMA.16816.F32.BF16")
        assert one.has("LDGSTS.E", "128")
        assert one.has("LDSM.16.M88")
        assert one.has("LDS.128")  # a lane's share of packed weights
        assert not one.has("LDG.E.U8")


@pytest.mark.parametrize(("name", "act"), [("nvfp4", "nvfp4"), ("mxint8", None)])
def test_many_rows_on_sm_90a(name, act) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS.get(act), arch_named("sm_90a"))
    kernels, said = kernels_of({"gemm": kernel.gemm(N, K, bias=False)}, kernel.arch)
    check(kernels, said)
    wide = kernels["gemm_kernel_3"]
    assert wide.has("HGMMA.64x256x16.F32.BF16")
    assert wide.has("UTMALDG.3D")
    assert wide.has("UBLKCP")  # bulk copies of packed weights
    assert wide.has("USETMAXREG")
    assert "serialized" not in said  # ptxas: wgmma that wait for each other


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("nvfp4", ("OMMA.SF.16864", "E2M1.E2M1", "UE4M3.4X")),
        ("mxfp4", ("OMMA.SF.16864", "E2M1.E2M1", "E8")),
        ("mxfp8", ("QMMA.SF.16832", "E4M3.E4M3", "E8")),
        NEAR("mxfp6", ("QMMA.SF.16832", "E2M3.E2M3", "E8")),
    ],
)
def test_the_native_gemm_of_sm_120a(name, instruction) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS[name], arch_named("sm_120a"))
    rule = kernel.weight.default_rule
    functions = {"gemm": kernel.gemm(N, K, bias=False), "quantize": kernel.quantize(K, rule)}
    kernels, said = kernels_of(functions, kernel.arch)
    check(kernels, said)
    for number in ("", "_1"):
        one = kernels[f"gemm_kernel{number}"]
        assert one.has(*instruction), one.instructions
        assert one.has("LDGSTS.E", "128")
        assert one.has("LDS.128")
    assert kernels["quantize_kernel"].has("LDG.E.128")


@pytest.mark.parametrize(
    ("name", "instruction"),
    [("nvfp4", "UTCOMMA.4X"), ("mxfp4", "UTCOMMA"), ("mxfp8", "UTCQMMA")],
)
def test_the_native_gemm_of_sm_100a(name, instruction) -> None:
    kernel = kernel_for(FORMATS[name], FORMATS[name], arch_named("sm_100a+tcgen05"))
    kernels, said = kernels_of({"gemm": kernel.gemm(N, K, bias=True, epilogue="gelu")}, kernel.arch)
    check(kernels, said)
    assert set(kernels) == {"gemm_kernel", "gemm_kernel_1", "gemm_kernel_2"}
    for one in kernels.values():
        assert one.has(instruction)
        assert one.has("UTCCP", "4x32dp128bit")  # scales to tensor memory
        assert one.has("UTMALDG.3D")
        assert one.has("UBLKCP")
        assert one.has("LDTM")
        assert not one.has("HMMA")


@pytest.mark.parametrize("arch", ["sm_80", "sm_120a"])
def test_attention_keeps_all_of_a_head_in_registers(arch) -> None:
    """The longest head, which takes most."""
    heads = (Heads(count) for count in (8, 2, 2))
    what = Attention(*heads, LONGEST, LONGEST, 0.1, causal=True, few=None)
    kernels, said = kernels_of({"attention": attention_kernel(what)}, arch_named(arch))
    assert len(kernels) == 3  # whole queries; parts of the keys; their sum
    check(kernels, said)
    assert sum(one.has("SHFL") for one in kernels.values()) == 2


def test_quantization_loads_sixteen_bytes() -> None:
    arch = arch_named("sm_80")
    functions = {
        name: kernel_for(FORMATS[name], FORMATS[name], arch).quantize(K, rule)
        for name, rule in (("nvfp4", "absmax"), ("mxint8", "rceil"))
    }
    norm = Prologue(combine="add", norm="layer_norm", epsilon=1e-5, keeps_sum=True, keeps_row=True)
    kernel = kernel_for(FORMATS["mxint8"], FORMATS["mxint8"], arch)
    functions["norm"] = kernel.quantize(K, "rceil", norm)
    kernels, said = kernels_of(functions, arch)
    check(kernels, said)
    for one in kernels.values():
        assert one.has("LDG.E.128")
        assert one.has("STG.E.64")
        assert one.has("SHFL")
    for instruction in ("STG.E.128", "STS.128", "LDS.128"):  # results in float; the row, held
        assert kernels["norm_kernel"].has(instruction)
