"""The instructions of compiled kernels, and what ptxas says of them."""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lbcompiler.targets.cuda.arch import Arch
from tests.emulator.build import cuda_text

HOST_PART = "#include <tvm/ffi/c_api.h>"
FLAGS = ("-std=c++17", "-O3", "--ftz=false", "-w", "-Xptxas", "-v")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """How often each instruction stands in a kernel, by its whole name."""

    instructions: Counter[str]

    def has(self, *parts: str) -> bool:
        """Whether an instruction holds all of the parts of its name, in this order."""
        pattern = ".*".join(re.escape(part) for part in parts)
        return any(re.match(pattern, name) for name in self.instructions)


def tool(name: str) -> str:
    """From NVIDIA's pip packages or from PATH; "" if there is none."""
    for folder in _folders():
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name) or ""


@cache
def _folders() -> list[Path]:
    spec = find_spec("nvidia")
    if spec is None or spec.submodule_search_locations is None:
        return []
    return [path for at in spec.submodule_search_locations for path in Path(at).glob("cu*/bin")]


def can_disassemble() -> bool:
    return all(tool(name) for name in ("nvcc", "cuobjdump", "nvdisasm"))


def kernels_of(functions: dict[str, Any], arch: Arch) -> tuple[dict[str, Kernel], str]:
    """Name -> instructions of every kernel of some PrimFuncs, and ptxas' words."""
    text = cuda_text(functions, arch.device).partition(HOST_PART)[0]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "k.cu"), Path(folder, "k.cubin")
        source.write_text(text)
        command = [tool("nvcc"), "-cubin", "-gencode", arch.gencode, *FLAGS]
        command += ["-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        path = os.pathsep.join([*map(str, _folders()), os.environ["PATH"]])
        sass = subprocess.run(
            [tool("cuobjdump"), "-sass", str(cubin)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PATH": path},
        ).stdout
    found = {}
    for part in sass.split("Function : ")[1:]:
        found[part.split()[0]] = Kernel(Counter(INSTRUCTION.findall(part)))
    return found, done.stderr
