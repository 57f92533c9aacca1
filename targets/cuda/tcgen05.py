"""What sm_100a multiplies with: tensor memory and `tcgen05`, as device functions around one PTX
instruction each, and the descriptors they take (PTX ISA, "TensorCore 5th Generation Family
Instructions").

Tensor memory has 128 lanes of 512 columns of 32 bits; an address is lane << 16 | column. Addresses
in shared memory are 32 bits, as `cvta` has them.
"""

from lbcompiler.targets.cuda.asynchronous import ATOM as SWIZZLED
from lbcompiler.targets.cuda.asynchronous import statement
from lbcompiler.targets.cuda.intrinsics import Device, Expr, Registers
from lbcompiler.targets.cuda.layout_native import Pair
from lbcompiler.targets.cuda.layout_tcgen05 import ATOM_BLOCKS

ROWS = 128  # of operand A, and lanes of the sums
COLUMNS = 512  # of tensor memory
FEWEST_COLUMNS = 32  # that can be taken; always a power of two
_INLINE = "__device__ __forceinline__"
_VERSION = 1 << 46  # of matrix descriptors, that of sm_100
_SWIZZLE_128, _NO_SWIZZLE = 2 << 61, 0
_FORMATS = {"e4m3": 0, "e5m2": 1}  # of kind::mxf8f6f4
_E2M1 = 1  # of the kinds that have no other
_SCALES = {"e4m3": 0, "e8m0": 1}


def _matrix(leading: int, stride: int, swizzle: int) -> int:
    """A matrix descriptor without its address; `leading` and `stride` in bytes."""
    return leading >> 4 << 16 | stride >> 4 << 32 | _VERSION | swizzle


CODES = _matrix(16, SWIZZLED, _SWIZZLE_128)  # rows of 128 bytes, eight of them a swizzled kilobyte
SCALES = _matrix(0, 128, _NO_SWIZZLE)  # 32 rows of 16 bytes, eight of them 128 bytes apart


def instruction(pair: Pair, tokens: int, step: int) -> int:
    """The instruction descriptor of W (128, ..) times x (tokens, ..), both along K, float32 sums,
    in a step of a tile: which of the four scale bytes in a column it begins with.
    """
    if pair.weight.element.bits == 4:
        a = b = _E2M1
    else:
        a, b = _FORMATS[pair.weight.element.name], _FORMATS[pair.act.element.name]
    first = step * pair.step_scales % ATOM_BLOCKS
    scale = _SCALES[pair.weight.scale]
    return (
        first << 4
        | a << 7
        | b << 10
        | tokens >> 3 << 17
        | scale << 23
        | ROWS >> 4 << 24
        | first << 29
    )


def _descriptor(name: str, fixed: int) -> Device:
    text = (
        f"{_INLINE} uint64_t {name}(unsigned address) "
        f"{{ return uint64_t(address >> 4 & 0x3FFF) | {fixed:#x}ull; }}"
    )
    return Device(name, text, "uint64")


CODES_AT = _descriptor("lb_codes_at", CODES)
SCALES_AT = _descriptor("lb_scales_at", SCALES)

ALLOCATE = statement(
    "lb_tmem_allocate",
    "unsigned target, unsigned columns",
    "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], %1;",
    '"r"(target), "r"(columns)',
)  # by a whole warp; the address is written to shared memory
LEAVE_TO_OTHERS = Device(
    "lb_tmem_relinquish",
    f"{_INLINE} void lb_tmem_relinquish() "
    '{ asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"); }',
)
FREE = statement(
    "lb_tmem_free",
    "unsigned address, unsigned columns",
    "tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, %1;",
    '"r"(address), "r"(columns)',
)  # by the warp that took it
BEFORE_BARRIER = Device(
    "lb_tcgen05_before",
    f"{_INLINE} void lb_tcgen05_before() "
    '{ asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory"); }',
)
AFTER_BARRIER = Device(
    "lb_tcgen05_after",
    f"{_INLINE} void lb_tcgen05_after() "
    '{ asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory"); }',
)
COPY_SCALES = statement(
    "lb_tcgen05_copy",
    "unsigned target, uint64_t source",
    "tcgen05.cp.cta_group::1.32x128b.warpx4 [%0], %1;",
    '"r"(target), "l"(source)',
)
ARRIVE_WHEN_DONE = statement(
    "lb_tcgen05_commit",
    "unsigned b",
    "tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];",
    '"r"(b)',
)  # at an mbarrier, once everything this thread has started before is done


def multiply(pair: Pair) -> Device:
    """(sums, W, x: descriptors, instruction, scales of W, of x, whether to add to the sums)."""
    name = f"lb_tcgen05_{pair.kind}"
    assembly = (
        "{ .reg .pred p; setp.ne.b32 p, %6, 0; "
        f"tcgen05.mma.cta_group::1.kind::{pair.kind}.block_scale.scale_vec::{pair.step_scales}X "
        "[%0], %1, %2, %3, [%4], [%5], p; }"
    )
    return statement(
        name,
        "unsigned d, uint64_t a, uint64_t b, unsigned how, unsigned sa, unsigned sb, int add",
        assembly,
        '"r"(d), "l"(a), "l"(b), "r"(how), "r"(sa), "r"(sb), "r"(add)',
    )


def load_sums(sums: Registers, address: Expr) -> None:
    """As many columns of this thread's lane as there are registers, and waits for them. A warp sees
    the 32 lanes from 32 (warp % 4) on.
    """
    count = sums.count
    name = f"lb_tmem_load_{count}"
    outputs = ", ".join(f'"=f"(d[{i}])' for i in range(count))
    text = (
        f"{_INLINE} void {name}(float* d, unsigned address) {{ asm volatile("
        f'"tcgen05.ld.sync.aligned.32x32b.x{count}.b32 '
        f"{{{', '.join(f'%{i}' for i in range(count))}}}, [%{count}]; "
        f'tcgen05.wait::ld.sync.aligned;" : {outputs} : "r"(address) : "memory"); }}'
    )
    Device(name, text).run(sums.pointer(), address)
