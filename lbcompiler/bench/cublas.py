"""cuBLAS by itself, without a package that wraps it: y = x W^T in bfloat16.

Its library comes with the pip package nvidia-cublas, with torch, or with a CUDA toolkit.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tvm

from lbcompiler.errors import ConfigError, DeviceError
from lbcompiler.targets.cuda.clock import Clock, given_back
from lbcompiler.targets.cuda.machine import TOOLKITS
from lbcompiler.targets.cuda.toolchain import pip_folders

LIBRARIES = ("libcublas.so.13", "libcublas.so.12")
WORKSPACE_BYTES = 32 << 20  # what cuBLAS itself takes on Hopper
_BFLOAT16, _FLOAT32_SUMS, _DEFAULT = 14, 68, -1  # CUDA_R_16BF, CUBLAS_COMPUTE_32F, algorithm
_TRANSPOSED, _AS_IT_IS = 1, 0


class Cublas:
    """A handle on the clock's stream. Raises ConfigError where there is no cuBLAS."""

    def __init__(self, clock: Clock) -> None:
        self._library, self._clock = _load(), clock  # whose stream it uses
        self._handle = ctypes.c_void_p()
        self._check(self._library.cublasCreate_v2(ctypes.byref(self._handle)), "cublasCreate")
        given_back(self, self._library.cublasDestroy_v2, self._handle)
        set_stream = self._library.cublasSetStream_v2
        self._check(set_stream(self._handle, clock.stream), "cublasSetStream")
        # one of its own: cuBLAS would allocate one while calls are captured
        self._workspace = tvm.runtime.empty((WORKSPACE_BYTES,), "uint8", clock.device)
        set_workspace = self._library.cublasSetWorkspace_v2
        size = ctypes.c_size_t(WORKSPACE_BYTES)
        self._check(set_workspace(self._handle, _at(self._workspace), size), "cublasSetWorkspace")
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)

    def multiply(self, x: Any, w: Any, y: Any) -> None:
        """y (M, N) = x (M, K) W (N, K)^T, tensors of bfloat16 as uint16. In the columns that cuBLAS
        counts in, that is y^T = W^T^T x^T.
        """
        (m, k), (n, _) = x.shape, w.shape
        m, k, n = (ctypes.c_int(int(size)) for size in (m, k, n))
        status = self._library.cublasGemmEx(
            self._handle,
            *(_TRANSPOSED, _AS_IT_IS, n, m, k),
            *(ctypes.byref(self._one), _at(w), _BFLOAT16, k, _at(x), _BFLOAT16, k),
            *(ctypes.byref(self._zero), _at(y), _BFLOAT16, n, _FLOAT32_SUMS, _DEFAULT),
        )
        self._check(status, "cublasGemmEx")

    def _check(self, status: int, what: str) -> None:
        if status:
            raise DeviceError(f"{what} of cuBLAS gives status {status}")


def _at(tensor: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _load() -> ctypes.CDLL:
    for path in places():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise ConfigError("there is no cuBLAS: pip install nvidia-cublas, or leave it out of --peers")


def places() -> Iterator[str]:
    """Where its library may be: files of packages and toolkits, then names for the system."""
    folders = [folder / "lib" for folder in pip_folders()]
    folders += [folder.parent / "cublas" / "lib" for folder in pip_folders()]
    for folder in [*folders, *map(Path, TOOLKITS)]:
        yield from (str(folder / name) for name in LIBRARIES if (folder / name).is_file())
    yield from LIBRARIES
