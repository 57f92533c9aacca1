"""A cuBLAS for the GPU that is not there: it multiplies as the BLAS says, in columns."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


class Double:
    def __getattr__(self, name: str) -> Callable[..., int]:
        return _gemm_ex if name == "cublasGemmEx" else lambda *_: 0


def _gemm_ex(_handle: Any, *arguments: Any) -> int:
    op_a, op_b, m, n, k, _alpha, a, kind_a, lda, b, kind_b, ldb, _beta, c, kind_c, ldc, *way = (
        getattr(argument, "value", argument) for argument in arguments
    )
    assert (op_a, op_b, kind_a, kind_b, kind_c, *way) == (1, 0, 14, 14, 14, 68, -1)
    with _open_memory():
        left, right = (_real(_columns(*held)) for held in ((a, k, m, lda), (b, k, n, ldb)))
        product = (left.T @ right).astype(ml_dtypes.bfloat16).view(np.uint16)
        _columns(c, m, n, ldc)[...] = product
    return 0


@contextmanager
def _open_memory() -> Iterator[None]:
    """Only in here the processor may touch what is on the device."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.fake_cuda_open()
    try:
        yield
    finally:
        driver.fake_cuda_close()


def _columns(at: int, rows: int, count: int, apart: int) -> NDArray[np.uint16]:
    """(rows, count) bfloat16 at an address, one column behind the other."""
    held = (ctypes.c_uint16 * (apart * count)).from_address(at)
    return np.frombuffer(held, np.uint16).reshape(count, apart)[:, :rows].T


def _real(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return np.ascontiguousarray(bits).view(ml_dtypes.bfloat16).astype(np.float32)
