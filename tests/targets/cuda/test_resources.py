import pytest

from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.resources import (
    MEMORY,
    TENSOR_CORES,
    Usage,
    instructions_of,
    occupancy,
    read_sass,
    usage_of,
)
from lbcompiler.targets.cuda.toolchain import find_nvcc
from tests.targets.cuda import needs

COPY = """
extern "C" __global__ void copy(const float4* __restrict__ x, float4* y) {
  __shared__ float4 held[128];
  held[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = held[127 - threadIdx.x];
}
extern "C" __global__ void scale(float* y) { y[threadIdx.x] *= 2; }
"""
SASS = """
                Function : gemm_kernel
        .headerflags    @"EF_CUDA_SM80"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                  /* 0x00000a0000017a02 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R9], [R2.64] ;     /* 0x0 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;   /* 0x0 */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;   /* 0x0 */
        /*0040*/             @UP0  UTMALDG.2D [UR8], [UR4] ;               /* 0x0 */
"""


@needs.nvcc
def test_what_ptxas_says_of_each_kernel() -> None:
    _, said = find_nvcc().compile(COPY, arch_named("sm_80"))
    usage = usage_of(said)
    assert set(usage) == {"copy", "scale"}
    assert usage["copy"].shared_bytes == 128 * 16
    assert usage["scale"].shared_bytes == 0
    assert all(0 < held.registers < 32 and not held.spill_bytes for held in usage.values())


@needs.nvcc
def test_a_kernel_that_spills() -> None:
    many = " ".join(f"x[{i} * 999 + threadIdx.x] = v[{i}];" for i in range(80))
    text = (
        'extern "C" __global__ void __launch_bounds__(1024) spilling(float* x) {\n'
        "float v[80];\n#pragma unroll\n"
        "for (int i = 0; i < 80; i++) v[i] = x[i * 999 + threadIdx.x];\n"
        f"__syncthreads();\n{many} }}\n"
    )
    _, said = find_nvcc().compile(text, arch_named("sm_80"))
    assert usage_of(said)["spilling"].spill_bytes > 0


def test_nothing_is_read_from_nothing() -> None:
    assert usage_of("ptxas info    : 0 bytes gmem\n") == {}


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "expected"),
    [
        ("sm_80", 1024, 32, 0, 1.0),  # 2 blocks of 32 warps
        ("sm_80", 256, 128, 0, 0.25),  # 128 x 32 = 4096 a warp: 16 warps, 2 blocks of 8
        ("sm_80", 256, 129, 0, 0.125),  # 136 x 32 a warp: 15 warps, 1 block of 8
        ("sm_80", 128, 16, 81 << 10, 8 / 64),  # 164 KiB hold two blocks of 82
        ("sm_80", 128, 16, 82 << 10, 4 / 64),
        ("sm_86", 1024, 32, 0, 32 / 48),  # one block of 32 warps, of 48
        ("sm_90", 32, 16, 0, 0.5),  # 32 blocks of a warp
        ("sm_120a", 128, 16, 100 << 10, 0.0),  # more than a block may have
    ],
)
def test_occupancy(arch: str, threads: int, registers: int, shared: int, expected: float) -> None:
    assert occupancy(arch_named(arch), threads, registers, shared) == expected


def test_instructions_are_counted_by_kernel() -> None:
    assert read_sass(SASS, (*TENSOR_CORES, *MEMORY)) == {
        "gemm_kernel": {
            "HMMA.16816.F32.BF16": 2,
            "LDGSTS.E.BYPASS.128": 1,
            "UTMALDG.2D": 1,
        }
    }


@needs.nvcc
@needs.cuobjdump
def test_instructions_of_a_cubin() -> None:
    cubin, _ = find_nvcc().compile(COPY, arch_named("sm_90a"))
    found = instructions_of(cubin)
    assert set(found) == {"copy", "scale"}
    assert any(name.startswith("LDG.E.128") for name in found["copy"])
    assert any(name.startswith("LDS.128") for name in found["copy"])
    assert not any(name.startswith("LDS") for name in found["scale"])


def test_what_is_no_cubin_has_no_instructions() -> None:
    assert instructions_of(b"nothing") == {}


def test_usage_is_written_as_it_is_read() -> None:
    usage = Usage(1, 2, 3)
    assert Usage(**usage.to_json()) == usage
