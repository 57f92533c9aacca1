"""What a torch node can be worth before it is an expression: a constant that is read late.

A node whose tensors are all parameters, buffers or made from them is not translated: torch itself
computes it, when the numbers are asked for. So a transposed, sliced or cast weight stays one lazy
entry of the weight table, and mask and position buffers are folded for any operator torch knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.ir.model import Array, Weight

HELD = 1024  # elements: up to this, a vector is held by the IR itself


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor known without the inputs. `root` is the parameter or buffer it was made from, by
    its fully qualified name, or "" if there is none or more than one."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # the dtype it has in the compiled model: every float is float32
    load: Callable[[], Any]  # -> torch.Tensor, in the program's own dtype
    root: str = ""

    @property
    def is_held(self) -> bool:
        """Whether it is small enough to stay in the IR instead of the weight table."""
        size = int(np.prod(self.shape, dtype=np.int64))
        return size <= HELD and (len(self.shape) < 2 or self.dtype != "float32")

    def array(self) -> Array:
        """The numbers: a read-only view of torch's memory where dtype and layout allow."""
        import torch

        tensor = self.load().detach().cpu()
        dtype = getattr(torch, self.dtype)
        array: Array = np.ascontiguousarray(tensor.to(dtype).resolve_neg().numpy())
        array = array.reshape(self.shape)  # ascontiguousarray makes a scalar a vector
        array.flags.writeable = False
        return array

    def weight(self) -> Weight:
        return Weight(self.shape, self.dtype, self.array)

    def transposed(self) -> "Constant":
        """(K, N) -> (N, K)."""
        return Constant(
            f"{self.name}.t",
            self.shape[::-1],
            self.dtype,
            lambda: self.load().t(),
            self.root,
        )

    def reshaped(self, *shape: int) -> "Constant":
        return Constant(
            f"{self.name}.reshape",
            shape,
            self.dtype,
            lambda: self.load().reshape(shape),
            self.root,
        )


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor expression (a size is an expression, too)."""
    return isinstance(value, relax.Expr) and isinstance(value.ty, relax.TensorType)


def dtype_name(dtype: Any) -> str:
    """The dtype in the compiled model: all floats compute in float32, the rest is kept."""
    if dtype.is_complex:
        raise ModelError(
            f"The torch program computes with {dtype}: complex numbers do not compile."
        )
    return "float32" if dtype.is_floating_point else str(dtype).removeprefix("torch.")
