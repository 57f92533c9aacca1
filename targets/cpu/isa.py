"""The instruction sets the CPU kernels are written for: a value that every generator takes as a
parameter.

Three reach what most machines in use can do with an int8 dot product: `vpdpbusd` (four
products a lane in one instruction), `vpmaddubsw` + `vpmaddwd` (the same in two, with a 16-bit step
between), and plain widening integer arithmetic that every LLVM target has. A fourth adds to the
first `vdpbf16ps`, for formats whose codes are no small integers; a fifth has AMX. Sums are the
same, bit for bit, but where AMX adds products of codes that are no small integers (gemm_tiles.py);
an artifact names the one it needs. A target names a neutral processor model and no more features
than its level has, so that code built on one machine runs on every other machine of that level.
"""

import ctypes
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm

from lbcompiler.errors import ConfigError

ARCH_PRCTL = 158  # the system call's number on x86-64
REQUEST = 0x1023  # ARCH_REQ_XCOMP_PERM, Linux 5.16
TILE_DATA = 18  # the state component that AMX tiles are

_LEVEL_3 = frozenset(["avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"])
_LEVEL_4 = _LEVEL_3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"])


@dataclass(frozen=True)
class Isa:
    """`lanes`: float32 values a column vector of a kernel holds; `k_group`: k's in one integer dot
    product.
    """

    name: str
    lanes: int
    k_group: int
    requires: frozenset[str]  # flags as Linux spells them in /proc/cpuinfo
    processor: str = (
        ""  # LLVM's name of the neutral model; empty: the plainest of the host's architecture
    )
    attributes: tuple[str, ...] = ()

    def tvm_target(self, cores: int = 1) -> Any:
        """The `tvm.target.Target` that compiles for it; the number of cores guides nothing but
        tuning.
        """
        options: dict[str, Any] = {"kind": "llvm", "num-cores": cores}
        if self.processor:
            options["mcpu"] = self.processor
        if self.attributes:
            options["mattr"] = list(self.attributes)
        return tvm.target.Target(options)

    @property
    def is_avx512(self) -> bool:
        return "avx512f" in self.requires

    @property
    def has_bf16(self) -> bool:
        """Whether float kernels multiply pairs of bfloat16 (`dot_bf16`)."""
        return "+avx512bf16" in self.attributes

    @property
    def has_tiles(self) -> bool:
        """Whether it multiplies tiles of bfloat16 (`amx`)."""
        return "+amx-bf16" in self.attributes

    def runs_on(self, host: "Isa") -> bool:
        """Whether a machine whose best is `host` can execute code compiled for this."""
        return self.requires <= host.requires


AVX512_VNNI = Isa("avx512_vnni", 16, 4, _LEVEL_4 | {"avx512_vnni"}, "x86-64-v4", ("+avx512vnni",))
AVX512_BF16 = Isa(
    "avx512_bf16",
    16,
    4,
    AVX512_VNNI.requires | {"avx512_bf16"},
    "x86-64-v4",
    ("+avx512vnni", "+avx512bf16"),
)
AVX512_AMX = Isa(
    "avx512_amx",
    16,
    4,
    AVX512_BF16.requires | {"amx_tile", "amx_bf16", "amx_int8"},
    "x86-64-v4",
    ("+avx512vnni", "+amx-tile", "+amx-bf16", "+amx-int8"),
)
AVX2 = Isa("avx2", 8, 4, _LEVEL_3, "x86-64-v3")
GENERIC = Isa("generic", 16, 1, frozenset())
ISAS = (AVX512_AMX, AVX512_BF16, AVX512_VNNI, AVX2, GENERIC)  # best first


def isa_named(name: str) -> Isa:
    """The instruction set of that name; ConfigError with the names there are."""
    for isa in ISAS:
        if isa.name == name:
            return isa
    known = ", ".join(isa.name for isa in ISAS)
    raise ConfigError(
        f"unknown instruction set {name!r} of target cpu; there are: {known}. "
        "Without one (--target cpu) the best that this machine has is taken."
    )


def host_flags() -> frozenset[str]:
    """What this machine's processor can do; empty where the system has no /proc/cpuinfo."""
    return frozenset(_host("flags").split())


def detect() -> Isa:
    """The best instruction set of this machine, with AMX where the system grants it."""
    flags = host_flags()
    return next(
        isa for isa in ISAS if isa.requires <= flags and (not isa.has_tiles or tiles_are_granted())
    )


def obstacle(isa: Isa) -> str:
    """Why this machine cannot run code for `isa`, "" where it can. The system is asked for tiles,
    which makes the signal frames of the process larger, by code that has tiles alone.
    """
    if not isa.requires <= host_flags():
        return "which this machine lacks"
    if isa.has_tiles and not tiles_are_granted():
        return "whose AMX tiles the system does not grant to this process"
    return ""


@cache
def tiles_are_granted() -> bool:
    """Whether Linux lets this process use AMX tiles: asked for as the kernels do (amx.py)."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return False
    request = (ctypes.c_long(number) for number in (ARCH_PRCTL, REQUEST, TILE_DATA))
    return bool(ctypes.CDLL(None).syscall(*request) == 0)


def preferred() -> Isa:
    """The fastest one here, which a target without a name takes.

    Intel's cores issue a `vdpbf16ps` every second cycle, fewer products than their two FMAs a
    cycle make (on a Sapphire Rapids core 105 GFLOP/s and 218): pairs are worth it elsewhere alone.
    """
    best = detect()
    return AVX512_VNNI if best is AVX512_BF16 and _host("vendor_id") == "GenuineIntel" else best


def _host(field: str) -> str:
    """The first of its values in /proc/cpuinfo of an x86-64 machine; else nothing."""
    listing = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not listing.exists():
        return ""
    for line in listing.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""
