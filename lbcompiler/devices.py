"""Where a program's tensors live: in the host's memory, or in a GPU's.

A `Place` puts arrays where the code reads them and takes results from there. On a GPU every array
is copied there and back; weights are copied once.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import tvm

from lbcompiler.errors import DeviceError, never_freed
from lbcompiler.ir.model import Array
from lbcompiler.tensors import GrowingTensor, Memory, as_array, as_tensor


class Place(Protocol):
    device: Any

    def held(self, array: Any) -> Any:
        """A weight, which stays."""

    def put(self, array: Array) -> Any:
        """An input."""

    def take(self, tensor: Any, taken: Container[int]) -> Array:
        """A result as an array of the caller's own; `taken`: addresses that others hold."""

    def memory(self, shape: Sequence[int], dtype: str, room: int) -> Memory:
        """Rows that grow."""

    def finish(self) -> None:
        """Wait until everything that was called is done."""


class Host:
    def __init__(self) -> None:
        self.device = tvm.cpu()

    def held(self, array: Any) -> Any:
        return tvm.runtime.from_dlpack(array)

    def put(self, array: Array) -> Any:
        return as_tensor(array)

    def take(self, tensor: Any, taken: Container[int]) -> Array:
        return as_array(tensor, taken)

    def memory(self, shape: Sequence[int], dtype: str, room: int) -> Memory:
        return GrowingTensor(shape, dtype, room)

    def finish(self) -> None:
        """Nothing: a call returns when it is done."""


@contextmanager
def cuda_failures() -> Iterator[None]:
    """Raises DeviceError for what TVM raises where CUDA fails."""
    try:
        yield
    except Exception as error:  # TVM's errors share no class of their own
        raise failure(error) from None


class Gpu:
    """The first one. Raises DeviceError where its memory does not suffice, or it fails."""

    def __init__(self) -> None:
        self.device = tvm.cuda(0)

    def held(self, array: Any) -> Any:
        return self.put(np.from_dlpack(array))

    @cuda_failures()
    def put(self, array: Array) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), device=self.device)

    @cuda_failures()
    def take(self, tensor: Any, taken: Container[int]) -> Array:
        result: Array = tensor.numpy()
        return result

    def memory(self, shape: Sequence[int], dtype: str, room: int) -> Memory:
        return _GpuMemory(shape, dtype, room, self.device)

    @cuda_failures()
    def finish(self) -> None:
        self.device.sync()


class _GpuMemory:
    """As `GrowingTensor`. Raises DeviceError; where it cannot grow, it is as it was."""

    @cuda_failures()
    def __init__(self, shape: Sequence[int], dtype: str, room: int, device: Any) -> None:
        self._shape, self._dtype, self._device = tuple(shape), dtype, device
        self.tensor = self._allocated(room)

    @property
    def room(self) -> int:
        return int(self.tensor.shape[0])

    @cuda_failures()
    def write(self, rows: Array) -> None:
        self._view(len(rows)).copyfrom(np.ascontiguousarray(rows))

    @cuda_failures()
    def read(self, count: int) -> Array:
        held: Array = self._view(count).numpy()
        return held

    @cuda_failures()
    def grow(self, room: int, kept: int) -> None:
        larger = self._allocated(room)
        self._view(kept).copyto(larger._create_view((kept, *self._shape)))
        self.tensor = larger

    def _view(self, count: int) -> Any:
        return self.tensor._create_view((count, *self._shape))

    def _allocated(self, room: int) -> Any:
        return tvm.runtime.empty((room, *self._shape), self._dtype, self._device)


MEMORY_WORDS = ("out of memory", "OUT_OF_MEMORY", "MemoryAllocation")


def is_device_failure(error: BaseException) -> bool:
    """Whether TVM says that CUDA failed."""
    return "CUDA" in type(error).__name__ or "cuda" in str(error).lower()


def failure(error: BaseException) -> DeviceError:
    """What CUDA says through TVM, as an error of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = next((line for line in lines if "CUDA" in line or "cuda" in line), lines[-1]).strip()
    if any(word in str(error) for word in MEMORY_WORDS):
        return DeviceError(
            f"the GPU has not enough free memory ({said}): give smaller inputs, or end what else "
            "uses it (nvidia-smi lists that)"
        )
    never_freed(error)
    return DeviceError(
        f"the GPU failed ({said}): if it does so again, nvidia-smi and the system's log tell "
        "whether it is still there; `lbc doctor` looks at the installation"
    )
