"""What a kernel takes of its multiprocessor: registers, spills, shared memory, occupancy; and the
instructions for tensor cores and memory that are in its machine code.

ptxas says the first three while it compiles; the last is read from the SASS where `cuobjdump` is
installed (the packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm).
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lbcompiler.targets.cores import at_once
from lbcompiler.targets.cuda.arch import (
    REGISTERS,
    REGISTERS_AT_ONCE,
    RESERVED_SHARED,
    WARP,
    Arch,
)
from lbcompiler.targets.cuda.toolchain import find_tool

TENSOR_CORES = ("HMMA", "IMMA", "QMMA", "OMMA", "HGMMA", "QGMMA", "UTC", "LDTM", "STTM")
MEMORY = (
    "LDG",
    "STG",
    "LDS",
    "STS",
    "LDSM",
    "LDGSTS",
    "UTMA",
    "UBLKCP",
    "LDL",
    "STL",
    "ATOM",
    "RED",
)


@dataclass(frozen=True)
class Usage:
    """Of one kernel as ptxas compiled it; `shared_bytes` are static."""

    registers: int
    spill_bytes: int
    shared_bytes: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


_KERNEL = re.compile(r"Function properties for (\S+)")
_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def usage_of(ptxas: str) -> dict[str, Usage]:
    """The kernels of what `ptxas -v` printed. Spills are the bytes stored and loaded."""
    found: dict[str, Usage] = {}
    name, spilled = "", 0
    for line in ptxas.splitlines():
        if match := _KERNEL.search(line):
            name, spilled = match.group(1), 0
        elif match := _SPILL.search(line):
            spilled = sum(map(int, match.groups()))
        elif name and (match := _REGISTERS.search(line)):
            shared = _SHARED.search(line)
            found[name] = Usage(int(match.group(1)), spilled, int(shared.group(1)) if shared else 0)
    return found


def occupancy(arch: Arch, threads: int, registers: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps that can be there at once, 0 where a block does not
    fit.
    """
    warps = -(-threads // WARP)
    registers_a_warp = -(-registers * WARP // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    by_registers = REGISTERS // max(1, registers_a_warp) // warps
    by_shared = arch.shared // (shared_bytes + RESERVED_SHARED)
    if shared_bytes > arch.block_shared:
        return 0.0
    blocks = min(arch.blocks, arch.threads // WARP // warps, by_registers, by_shared)
    return blocks * warps / (arch.threads // WARP)


def instructions_of(
    cubin: bytes, wanted: tuple[str, ...] = (*TENSOR_CORES, *MEMORY)
) -> dict[str, dict[str, int]]:
    """By kernel: instructions of the SASS whose names begin as `wanted`, as `HMMA.16816.F32.BF16`,
    and how often each stands there. Nothing where cuobjdump or nvdisasm is not installed.
    """
    cuobjdump, nvdisasm = find_tool("cuobjdump"), find_tool("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="lbc-sass-") as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        search = f"{nvdisasm.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        done = subprocess.run(
            [str(cuobjdump), "-sass", str(path)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": search},
        )
    return read_sass(done.stdout, wanted) if not done.returncode else {}


def instructions_of_all(cubins: Sequence[bytes]) -> list[dict[str, dict[str, int]]]:
    """`instructions_of` each, as many at once as there are cores."""
    return at_once(instructions_of, cubins)


_FUNCTION = re.compile(r"^\s*Function : (\S+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


def read_sass(text: str, wanted: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """The same of what `cuobjdump -sass` printed."""
    found: dict[str, dict[str, int]] = {}
    counts: dict[str, int] = {}
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            counts = found.setdefault(match.group(1), {})
        elif match := _INSTRUCTION.match(line):
            name = match.group(1)
            if name.startswith(wanted):
                counts[name] = counts.get(name, 0) + 1
    return {kernel: dict(sorted(held.items())) for kernel, held in found.items()}
