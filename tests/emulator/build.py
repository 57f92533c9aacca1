"""Generated CUDA text, compiled for this CPU and loaded: the same kernels and the same host code
that launches them, on numpy arrays.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm.backend.cuda import export_cuda_host

from tests.emulator.ptx import number_waits, translate

TOOLKIT = Path(__file__).parent / "toolkit"
FOLDER = Path(tempfile.gettempdir(), f"lbcompiler-emulator-{os.getuid()}")
CONTROL = """
extern "C" __attribute__((visibility("default"))) void emulator_start(
    unsigned long long seed, int flush, int skipped) {
  emulator::skipped = skipped;
  emulator::set_flush(flush);
  emulator::random_state = seed * 2 + 1;
  for (int i = 0; i < 8; i++) emulator::draw(2);
}
"""


def cuda_text(functions: dict[str, Any], arch: str = "sm_80") -> str:
    """The one CUDA text of some TIRx PrimFuncs, host functions behind the kernels."""
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    target = tvm.target.Target({"kind": "cuda", "arch": arch}, host="cuda_host")
    built = tvm.compile(tvm.IRModule(named), target=target, tir_pipeline="tirx")
    return str(export_cuda_host(built.mod))


class Emulated:
    """The host functions of a CUDA text, by name; `waits`: (kernel, statement) of every place where
    its kernels wait.
    """

    def __init__(self, text: str) -> None:
        text, self.waits = number_waits(text)
        library = _library(text)
        self._module = tvm_ffi.load_module(str(library))
        self._start = ctypes.CDLL(str(library)).emulator_start

    def __call__(
        self,
        name: str,
        *arrays: NDArray[Any],
        seed: int = 0,
        flush: bool = False,
        without: int | None = None,
    ) -> None:
        """Run on arrays, the results last. The order of threads is drawn from the seed; `flush`
        makes float32 subnormals zeros, as nvcc's --ftz=true does; `without` leaves out the
        statement of that number in `waits`.

        RuntimeError for a deadlock, an address that is not aligned and the like.
        """
        self._prepare(seed, flush, -1 if without is None else without)
        try:
            self._module[name](*[tvm_ffi.from_dlpack(_writable(a)) for a in arrays])
        finally:
            self._prepare(0, False, -1)

    def ends(self, name: str, *arrays: NDArray[Any], **options: Any) -> bool:
        """Whether a call comes to its end: one without a wait may not."""
        try:
            self(name, *arrays, **options)
        except Exception as error:
            if "CUDA launch" not in str(error):
                raise
            return False
        return True

    def _prepare(self, seed: int, flush: bool, without: int) -> None:
        self._start(ctypes.c_ulonglong(seed), ctypes.c_int(flush), ctypes.c_int(without))


def emulate(functions: dict[str, Any], arch: str = "sm_80") -> Emulated:
    return Emulated(cuda_text(functions, arch))


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.flags.writeable else array.copy()


def _library(text: str) -> Path:
    """The shared library of a CUDA text, compiled once for all processes."""
    source = translate(text) + CONTROL
    # the arrays are the CPU's: that is what the host code shall expect
    source = source.replace(".device.device_type) == 2)", ".device.device_type) == 1)")
    source = '#include "cuda_runtime.h"\n' + source
    headers = "".join(path.read_text() for path in sorted(TOOLKIT.rglob("*.h")))
    digest = hashlib.sha256((source + headers).encode()).hexdigest()[:24]
    FOLDER.mkdir(exist_ok=True)
    library = FOLDER / f"{digest}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        (path := Path(folder, "kernels.cpp")).write_text(source)
        includes = [TOOLKIT, *_ffi_includes()]
        command = ["g++", "-O1", "-w", "-shared", "-fPIC", "-std=c++17", "-o", f"{folder}/it.so"]
        command += [str(path), *(f"-I{include}" for include in includes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"g++ does not take the text: {done.stderr[:4000]}")
        Path(folder, "it.so").rename(library)
    return library


def _ffi_includes() -> list[Path]:
    root = Path(tvm_ffi.__file__).parent
    return [root / "include"]
