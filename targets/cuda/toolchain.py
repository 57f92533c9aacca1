"""nvcc: where it is, which architectures it compiles for, and CUDA text -> cubin.

Text is compiled for one architecture at a time, without `--use_fast_math`: subnormal numbers count
(a code of a block format may be one times its scale), and division, square root and functions are
IEEE's or within their documented error. What ptxas says of a kernel is kept beside the cubin.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cuda.arch import Arch

FLAGS = ("-std=c++17", "-O3", "--ftz=false", "--prec-div=true", "--prec-sqrt=true", "-w")
WAYS = (
    "install the packages with pip install 'lbcompiler[cuda]', or put a CUDA toolkit's bin folder "
    "on PATH"
)
PATIENCE_S = 600  # for one kernel


@dataclass(frozen=True)
class Nvcc:
    path: Path
    version: str  # "13.0.88": code is the same only from the same one

    @property
    def release(self) -> tuple[int, int]:
        major, minor, *_ = self.version.split(".")
        return int(major), int(minor)

    def check(self, arch: Arch) -> None:
        """Raises ConfigError where it cannot compile for an architecture."""
        if self.release < arch.cuda:
            raise ConfigError(
                f"{self.path} is of CUDA {self.version}, which cannot compile for {arch.name}: "
                f"that needs CUDA {arch.cuda[0]}.{arch.cuda[1]} or later; {WAYS}"
            )

    def compile(self, source: str, arch: Arch) -> tuple[bytes, str]:
        """CUDA text -> (cubin, what ptxas says of its kernels).

        Raises CudaCompileError, which is a fault of ours unless the toolkit is not whole.
        """
        with tempfile.TemporaryDirectory(prefix="lbc-cuda-") as folder:
            text, cubin = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
            text.write_text(source)
            command = [str(self.path), "-cubin", "-gencode", arch.gencode, *FLAGS]
            command += ["-Xptxas", "-v", "-o", str(cubin), str(text)]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
                )
            except subprocess.TimeoutExpired:
                raise CudaCompileError(
                    f"nvcc did not finish within {PATIENCE_S} s for {arch.name}", source
                ) from None
            if done.returncode or not cubin.is_file():
                raise CudaCompileError(
                    f"nvcc {self.version} refused generated code for {arch.name}: "
                    f"{_first_error(done.stderr)}",
                    source,
                )
            return cubin.read_bytes(), done.stderr


class CudaCompileError(Exception):
    """Generated text that nvcc does not take; `source` is that text."""

    def __init__(self, message: str, source: str) -> None:
        super().__init__(message)
        self.source = source


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line or "fatal" in line]
    return (errors or lines or ["it said nothing"])[0]


def find_nvcc() -> Nvcc:
    """The first of $CUDACXX, PATH, the pip packages, $CUDA_HOME, /usr/local/cuda. Raises
    ConfigError.
    """
    path = find_tool("nvcc")
    if path is None:
        raise ConfigError(f"target cuda needs nvcc, and there is none: {WAYS}")
    return _nvcc_at(path)


def find_tool(name: str) -> Path | None:
    """A program of the CUDA toolkit."""
    for candidate in _places(name):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None


def _places(name: str) -> Iterator[Path]:
    if name == "nvcc" and os.environ.get("CUDACXX"):
        yield Path(os.environ["CUDACXX"])
    found = shutil.which(name)
    if found:
        yield Path(found)
    yield from (folder / "bin" / name for folder in pip_folders())
    for folder in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if folder:
            yield Path(folder, "bin", name)


def pip_folders() -> list[Path]:
    """Where NVIDIA's pip packages of CUDA put their files: .../site-packages/nvidia/cu13."""
    spec = find_spec("nvidia")
    if spec is None or spec.submodule_search_locations is None:
        return []
    found = (
        folder for at in spec.submodule_search_locations for folder in Path(at).glob("cu[0-9]*")
    )
    return sorted(found, reverse=True)


@cache
def _nvcc_at(path: Path) -> Nvcc:
    try:
        done = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{path} cannot be run ({error}): {WAYS}") from None
    version = re.search(r"\bV(\d+\.\d+(\.\d+)?)", done.stdout)
    if version is None:
        raise ConfigError(f"{path} does not say which version of nvcc it is: {WAYS}")
    return Nvcc(path, version.group(1))
