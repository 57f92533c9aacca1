"""The GPU architectures that code is generated for, as values, and which devices run which.

Code for sm_80 runs on every device of compute capability 8.x that is not older; an architecture
with an `a` has instructions that no other device has, and runs on that capability alone (PTX ISA,
".target"; CUDA C++ Programming Guide, "Application Compatibility"). Limits are those of the guide's
table "Technical Specifications per Compute Capability".

`sm_100a+tcgen05` is sm_100a with kernels that nobody has run. It is taken where it is said, never
by itself: it stands before sm_100a among what runs on that device.
"""

from dataclasses import dataclass
from typing import Any

import tvm

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cpu.isa import GENERIC

WARP = 32
REGISTERS = 65536  # of a multiprocessor
REGISTERS_AT_ONCE = 256  # a warp's are allocated in pieces of this many
RESERVED_SHARED = 1024  # bytes that the system takes of every block's shared memory
THREADS_OF_BLOCK = 1024
STATIC_SHARED = 48 << 10  # bytes a block may have without asking for more at launch


@dataclass(frozen=True)
class Arch:
    """`threads`, `blocks`, `shared` (bytes): what one multiprocessor holds at once; `block_shared`:
    what one block may have; `cuda`: the first CUDA release that compiles for it;
    `multiprocessors`: of the largest device in use (A100, A40, L40S, H100 and H200, B200, RTX PRO
    6000); a grid that is made for it fills a smaller one as well, less evenly.
    """

    name: str
    capability: tuple[int, int]
    cuda: tuple[int, int]
    threads: int
    blocks: int
    shared: int
    block_shared: int
    multiprocessors: int

    @property
    def device(self) -> str:
        """The name that nvcc and TVM know: without what is asked for behind a `+`."""
        return self.name.partition("+")[0]

    @property
    def is_specific(self) -> bool:
        """Whether it has instructions of one compute capability alone."""
        return self.device.endswith("a")

    @property
    def gencode(self) -> str:
        """For nvcc: `-arch=sm_90a` would drop the `a` of some steps."""
        number = self.device.removeprefix("sm_")
        return f"arch=compute_{number},code=sm_{number}"

    @property
    def schedule_target(self) -> Any:
        """The `tvm.target.Target` that loops are scheduled for. Without the `a`, which TVM's rules
        take for a device without tensor cores.
        """
        return self._target(self.device.removesuffix("a"))

    @property
    def tvm_target(self) -> Any:
        """The `tvm.target.Target` that code is generated for; its host part runs on any CPU."""
        return self._target(self.device)

    def _target(self, name: str) -> Any:
        options = {
            "kind": "cuda",
            "arch": name,
            "max_num_threads": THREADS_OF_BLOCK,
            "max_threads_per_block": THREADS_OF_BLOCK,
            "max_shared_memory_per_block": STATIC_SHARED,
            "thread_warp_size": WARP,
        }
        return tvm.target.Target(options, host=GENERIC.tvm_target())

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a device of that compute capability executes code compiled for this."""
        if self.is_specific:
            return capability == self.capability
        return capability[0] == self.capability[0] and capability >= self.capability


KIB = 1 << 10
ARCHS = (
    Arch("sm_80", (8, 0), (11, 8), 2048, 32, 164 * KIB, 163 * KIB, 108),
    Arch("sm_86", (8, 6), (11, 8), 1536, 16, 100 * KIB, 99 * KIB, 84),
    Arch("sm_89", (8, 9), (11, 8), 1536, 24, 100 * KIB, 99 * KIB, 142),
    Arch("sm_90", (9, 0), (11, 8), 2048, 32, 228 * KIB, 227 * KIB, 132),
    Arch("sm_90a", (9, 0), (12, 0), 2048, 32, 228 * KIB, 227 * KIB, 132),
    Arch("sm_100a+tcgen05", (10, 0), (12, 8), 2048, 32, 228 * KIB, 227 * KIB, 148),
    Arch("sm_100a", (10, 0), (12, 8), 2048, 32, 228 * KIB, 227 * KIB, 148),
    Arch("sm_120a", (12, 0), (12, 8), 1536, 24, 100 * KIB, 99 * KIB, 188),
)  # what runs on one device stands in the order of preference, the best last


def arch_named(name: str) -> Arch:
    """The architecture of that name; ConfigError with the names there are."""
    for arch in ARCHS:
        if arch.name == name:
            return arch
    known = ", ".join(arch.name for arch in ARCHS)
    raise ConfigError(
        f"unknown architecture {name!r} of target cuda; there are: {known}. Say one, or several "
        "for one artifact: --target cuda:sm_80,sm_90a"
    )


def archs_named(names: str) -> tuple[Arch, ...]:
    """`sm_80,sm_90a` -> both; ConfigError for an unknown name and one that is said twice."""
    archs = tuple(arch_named(name.strip()) for name in names.split(","))
    twice = next((arch.name for arch in archs if archs.count(arch) > 1), None)
    if twice is not None:
        raise ConfigError(f"the architecture {twice} is named twice in cuda:{names}")
    return archs


def best_for(capability: tuple[int, int], archs: tuple[Arch, ...] = ARCHS) -> Arch | None:
    """Of `archs` the one that makes most of a device; None where none runs on it."""
    return next(
        (arch for arch in reversed(ARCHS) if arch in archs and arch.runs_on(capability)), None
    )
