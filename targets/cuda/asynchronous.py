"""What sm_90a copies and multiplies with: mbarriers, TMA, `wgmma`, as device functions around one
PTX instruction each (PTX ISA, "Asynchronous Warpgroup Level Matrix Instructions", "cp.async.bulk").

Addresses in shared memory are 32 bits, as `cvta` has them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.intrinsics import Device, Expr, Registers

_INLINE = "__device__ __forceinline__"
SWIZZLE_128 = 3  # of CUtensorMap
ATOM = 8 * 128  # bytes of eight rows, within which 16-byte pieces are swizzled


def statement(name: str, parameters: str, assembly: str, operands: str) -> Device:
    """A device function that is one instruction without a result."""
    text = f"{_INLINE} void {name}({parameters}) {{ asm volatile("
    return Device(name, f'{text}"{assembly}" :: {operands} : "memory"); }}')


INIT = statement(
    "lb_mbarrier_init",
    "unsigned b, int count",
    "mbarrier.init.shared::cta.b64 [%0], %1;",
    '"r"(b), "r"(count)',
)
ARRIVE = statement(
    "lb_mbarrier_arrive",
    "unsigned b",
    "mbarrier.arrive.shared::cta.b64 _, [%0];",
    '"r"(b)',
)
EXPECT = statement(
    "lb_mbarrier_expect",
    "unsigned b, int bytes",
    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;",
    '"r"(b), "r"(bytes)',
)
WAIT = Device(
    "lb_mbarrier_wait",
    f"{_INLINE} void lb_mbarrier_wait(unsigned b, int parity) {{ unsigned done; do {{ asm volatile("
    '"{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; '
    'selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(b), "r"(parity) : "memory"); } while (!done); }',
)
FENCE_INIT = Device(
    "lb_fence_init",
    f'{_INLINE} void lb_fence_init() {{ asm volatile("fence.mbarrier_init.release.cluster;" ::: '
    '"memory"); }',
)
COPY_BULK = statement(
    "lb_copy_bulk",
    "unsigned target, const void* source, int bytes, unsigned b",
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];",
    '"r"(target), "l"(source), "r"(bytes), "r"(b)',
)
COPY_TILE = statement(
    "lb_copy_tile",
    "unsigned target, unsigned long long map, int x, int y, int z, unsigned b",
    "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
    "[%0], [%1, {%2, %3, %4}], [%5];",
    '"r"(target), "l"(map), "r"(x), "r"(y), "r"(z), "r"(b)',
)
WGMMA_FENCE = Device(
    "lb_wgmma_fence",
    f"{_INLINE} void lb_wgmma_fence() "
    '{ asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }',
)
WGMMA_COMMIT = Device(
    "lb_wgmma_commit",
    f"{_INLINE} void lb_wgmma_commit() "
    '{ asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }',
)
WGMMA_WAIT = Device(
    "lb_wgmma_wait",
    f"{_INLINE} void lb_wgmma_wait() "
    '{ asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }',
)


def more_registers(count: int) -> None:
    """For the warpgroup that calls it, up to `count` a thread."""
    _registers("inc", count)


def fewer_registers(count: int) -> None:
    _registers("dec", count)


def _registers(action: str, count: int) -> None:
    name = f"lb_registers_{action}_{count}"
    text = f'asm volatile("setmaxnreg.{action}.sync.aligned.u32 {count};");'
    Device(name, f"{_INLINE} void {name}() {{ {text} }}").run()


def wgmma(columns: int, sums: Registers, a: Registers, first: int, descriptor: Expr) -> None:
    """sums += A B: A (64, 16) in four registers from `a[first]` on, B (16, columns) bfloat16 where
    the descriptor says.
    """
    count = columns // 2
    d = ", ".join(f"%{i}" for i in range(count))
    code = (
        "{ .reg .pred p; setp.eq.u32 p, 1, 1; "
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.bf16.bf16 {{{d}}}, "
        f"{{{', '.join(f'%{count + i}' for i in range(4))}}}, %{count + 4}, p, 1, 1, 0; }}"
    )
    outputs = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    inputs = ", ".join(f'"r"(a[{i}])' for i in range(4))
    name = f"lb_wgmma_{columns}"
    text = (
        f"{_INLINE} void {name}(float* d, const unsigned* a, uint64_t b) {{ asm volatile("
        f'"{code}" : {outputs} : {inputs}, "l"(b)); }}'
    )
    Device(name, text).run(sums.pointer(), a.pointer(first), descriptor)


DESCRIPTOR = Device(
    "lb_descriptor",
    f"{_INLINE} uint64_t lb_descriptor(unsigned address) {{ return "
    f"uint64_t(address >> 4 & 0x3FFF) | 1ull << 16 | {ATOM >> 4}ull << 32 | 1ull << 62; }}",
    "uint64",
)  # of K-major rows of 128 bytes, swizzled: eight rows are one kilobyte


def shared_address(pointer: Expr) -> Expr:
    """uint32."""
    return T.cuda.cvta_generic_to_shared(pointer)


def tensor_map(x: Any, shape: Sequence[Expr], box: Sequence[int], kind: str = "uint16") -> Expr:
    """Host code: the CUtensorMap of a compact array of `kind` (uint8, uint16) of rank 3, outermost
    first, whose boxes are swizzled by 128 bytes.
    """
    held = T.Bind(T.tvm_stack_alloca("tensormap", 1))
    dims = [tirx.Cast("int64", d) if not isinstance(d, int) else d for d in reversed(shape)]
    size = np.dtype(kind).itemsize
    strides = [shape[2] * size, shape[2] * shape[1] * size]
    T.evaluate(
        T.tensormap_encode_tiled(
            held,
            x.data,
            *dims,
            *strides,
            *reversed(box),
            1,
            1,
            1,
            descriptor_dtype=kind,
            rank=3,
            swizzle=SWIZZLE_128,
        )
    )
    return held
