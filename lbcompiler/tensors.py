"""Arrays into the code and out of it, without a copy where their memory allows.

Generated code loads whole vectors from aligned starts, so an array is handed on as it lies if it is
contiguous and starts on a multiple of 64 bytes (torch's tensors do, numpy's large arrays do not).
A result is the memory the code wrote, unless somebody else holds that memory too."""

from collections.abc import Container, Sequence
from typing import Any, Protocol

import numpy as np
import tvm

from lbcompiler.errors import InputError
from lbcompiler.ir.model import Array
from lbcompiler.weights_file import ALIGNMENT

SMALL = 1 << 16  # bytes: copied in less time than it takes to find out whose it is


def as_numpy(value: Any, name: str) -> Array:
    """What was given for input `name`: numpy, DLPack, numbers or nested lists."""
    if isinstance(value, np.ndarray):
        return value
    try:
        if hasattr(value, "__dlpack__"):
            return np.from_dlpack(value.detach() if hasattr(value, "detach") else value)
        array = np.asarray(value)
    except Exception as error:  # every library refuses in its own words and classes
        raise InputError(
            f"input {name!r} cannot be read as an array ({str(error).strip().splitlines()[0]}): "
            "move it to the CPU, and convert it to a dtype that numpy has"
        ) from None
    if array.dtype == object:
        raise InputError(f"input {name!r} is no array: give numpy, DLPack, numbers or nested lists")
    return array


def as_tensor(array: Array) -> Any:
    """The array for the code to read: itself where it lies well, else a copy."""
    flags = array.flags
    if flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return tvm.runtime.from_dlpack(array)
    return tvm.runtime.tensor(np.asarray(array, order="C"))


def as_array(tensor: Any, taken: Container[int]) -> Array:
    """A result of the code as an array of the caller's own; `taken`: addresses that others hold."""
    array: Array = np.from_dlpack(tensor)
    return array.copy() if array.nbytes <= SMALL or array.ctypes.data in taken else array


class Memory(Protocol):
    """Rows along the first axis of one memory, with room behind them for more."""

    tensor: Any

    @property
    def room(self) -> int: ...

    def write(self, rows: Array) -> None:
        """The first rows."""

    def read(self, count: int) -> Array:
        """The first `count` rows; a view where that is possible."""

    def grow(self, room: int, kept: int) -> None:
        """Move the first `kept` rows to a memory with more room."""


class GrowingTensor:
    """Rows along the first axis of one memory, with room behind them for more."""

    def __init__(self, shape: Sequence[int], dtype: str, room: int) -> None:
        self._shape, self._dtype = tuple(shape), dtype
        self.tensor = self._allocated(room)

    @property
    def room(self) -> int:
        return int(self.tensor.shape[0])

    @property
    def rows(self) -> Array:
        """All of the memory as an array, written or not."""
        array: Array = np.from_dlpack(self.tensor)
        return array

    def write(self, rows: Array) -> None:
        self.rows[: len(rows)] = rows

    def read(self, count: int) -> Array:
        return self.rows[:count]

    def grow(self, room: int, kept: int) -> None:
        before = self.rows
        self.tensor = self._allocated(room)
        self.rows[:kept] = before[:kept]

    def _allocated(self, room: int) -> Any:
        return tvm.runtime.empty((room, *self._shape), self._dtype)
