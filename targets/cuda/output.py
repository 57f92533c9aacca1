"""y = epilogue(sum * scales + bias): what sums go through on their way to memory."""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cuda.epilogue import activation
from lbcompiler.targets.cuda.intrinsics import Expr, bound, int64


@dataclass(frozen=True)
class Output:
    """y f32 (m, n), from row `first_row` of its buffer on, and the arguments that belong to it;
    None where a kernel has none.
    """

    y: Any
    m: Expr
    n: int
    row_scales: Any  # tensor scales of the activations, f32 (m, 1)
    weight_scale: Any  # f32 (1,)
    bias: Any  # f32 (n,)
    activation: str
    first_row: Any = 0

    @classmethod
    def declare(
        cls, m: Expr, n: int, row_scales: Any, has_scale: bool, has_bias: bool, name: str
    ) -> "Output":
        """The last arguments of a kernel: [w_tensor_scale][, bias], y."""
        weight_scale = T.arg("w_tensor_scale", T.buffer((1,), "float32")) if has_scale else None
        bias = T.arg("bias", T.buffer((n,), "float32")) if has_bias else None
        y = T.arg("y", T.buffer((m, n), "float32"))
        return cls(y, m, n, row_scales, weight_scale, bias, name)

    def row_scale(self, row: Expr) -> Expr | None:
        """What a row's sums are multiplied with, read here; the row is a valid one."""
        factors = []
        if self.row_scales is not None:
            factors.append(self.row_scales[int64(row), int64(0)])
        if self.weight_scale is not None:
            factors.append(self.weight_scale[0])
        if not factors:
            return None
        return bound(factors[0] if len(factors) == 1 else factors[0] * factors[1], "float32")

    def finished(self, value: Expr, scale: Expr | None, column: Expr) -> Expr:
        if scale is not None:
            value = value * scale
        if self.bias is not None:
            value = value + self.bias[column]
        return activation(self.activation, value)

    def store(self, row: Expr, column: Expr, values: list[Expr], scale: Expr | None) -> None:
        """One value, or two side by side, of a valid row; columns beyond the last are dropped."""
        if len(values) == 2 and self.n % 2 == 0:
            with T.If(column < self.n), T.Then():
                pair = [
                    bound(self.finished(v, scale, column + i), "float32")
                    for i, v in enumerate(values)
                ]
                place = [int64(row) + self.first_row, tirx.Ramp(int64(column), int64(1), 2)]
                T.buffer_store(self.y, tirx.Shuffle(pair, [0, 1]), place)
            return
        for i, value in enumerate(values):
            with T.If(column + i < self.n), T.Then():
                kept = self.finished(value, scale, column + i)
                T.buffer_store(self.y, kept, [int64(row) + self.first_row, int64(column + i)])
