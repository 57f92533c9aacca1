"""The graph under construction: values by name, and one place where Relax is emitted.

A value is one of three things, and most of the importer follows from keeping them apart:
`Tensor` is computed at run time, `Constant` is a weight that loads when asked, `Sizes` is a small
integer tensor whose elements are known as arithmetic on the dynamic dimensions: nothing is emitted
for it unless an operator needs it as a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.shapes import (
    Shapes,
    Size,
    Sizes,
    all_known,
    expression,
    mentions,
    object_array,
)
from lbcompiler.ir import ops
from lbcompiler.ir.model import Array, Layer, Weight

Expr = Any
SMALL = 1024  # elements: a larger constant goes to the weight table
COMPUTED = ("float32", "bool", *(f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)))
SIZES_LIMIT = 256  # elements: a larger integer tensor is data, not sizes


@dataclass(frozen=True, eq=False)
class Tensor:
    """Computed at run time. `nonnegative` is what is known of integers used as indices."""

    expr: Expr
    shape: tuple[Size, ...]
    dtype: str
    nonnegative: bool = False


@dataclass(frozen=True, eq=False)
class Constant:
    """Known at import. A transpose remembers its origin, so that a transpose back is the origin."""

    name: str
    weight: Weight
    origin: Constant | None = None
    permutation: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def dtype(self) -> str:
        return self.weight.dtype

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def key(self) -> tuple[int, tuple[int, ...]]:
        """Equal for constants that are the same numbers in the same order."""
        return id((self.origin or self).weight), self.permutation

    def array(self) -> Array:
        return self.weight.load()


@dataclass(frozen=True, eq=False)
class SizeTensor:
    """A small integer tensor whose elements are sizes, at least one of them symbolic."""

    values: Sizes
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@dataclass(frozen=True, eq=False)
class TensorList:
    """An ONNX sequence whose length is known: it exists only between nodes."""

    items: tuple[Value, ...]

    @property
    def shape(self) -> tuple[Size, ...]:
        raise ModelError("it takes a tensor and is given a sequence of tensors")

    @property
    def dtype(self) -> str:
        raise ModelError("it takes a tensor and is given a sequence of tensors")


Value = Tensor | Constant | SizeTensor | TensorList


@dataclass(frozen=True)
class Node:
    """An ONNX node with its inputs looked up; an optional input that is left out is None."""

    name: str
    op: str
    domain: str
    opset: int
    inputs: tuple[Value | None, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    proto: onnx.NodeProto

    def has(self, position: int) -> bool:
        return self.optional(position) is not None

    def optional(self, position: int) -> Value | None:
        return self.inputs[position] if position < len(self.inputs) else None

    def __getitem__(self, position: int) -> Value:
        value = self.optional(position)
        if value is None:
            raise ModelError(f"input {position} is missing")
        return value

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def wants(self, position: int) -> bool:
        """Whether an optional output is asked for."""
        return position < len(self.outputs) and bool(self.outputs[position])


Converter = Callable[["Graph", Node], Value | Sequence[Value | None]]


def is_one(size: Size) -> bool:
    return isinstance(size, int) and size == 1


@dataclass
class Graph:
    builder: Any  # relax.BlockBuilder
    shapes: Shapes = field(default_factory=Shapes)
    weights: dict[str, Weight] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    _unnamed: int = 0
    _entered: dict[str, Constant] = field(default_factory=dict)
    _written: dict[int, tuple[Value, Expr]] = field(default_factory=dict)

    def emit(self, expr: Expr, *, nonnegative: bool = False) -> Tensor:
        """Bind the expression, every dimension in its simplest form."""
        bound = self.builder.emit(expr)
        type_ = bound.ty
        if not isinstance(type_, relax.TensorType) or type_.shape is None:
            raise ModelError(
                "the shape of its result depends on data, not only on the shapes of the inputs"
            )
        found = list(type_.shape.values)
        shape = tuple(self.shapes.simple(size) for size in found)
        if not all(map(self.shapes.same_form, found, shape)):
            bound = self._rewritten(bound, found, shape)
        return Tensor(bound, shape, str(type_.dtype), nonnegative)

    def _rewritten(self, bound: Expr, found: Sequence[Size], shape: Sequence[Size]) -> Expr:
        """The tensor with proven equal dimensions; TVM 0.27 crashes when match_cast turns f(n)
        into n."""
        if any(map(mentions, found, shape)):
            target = relax.ShapeExpr([expression(size) for size in shape])
            return self.builder.emit(relax.op.reshape(bound, target))
        return self.builder.match_cast(bound, self.type(shape, str(bound.ty.dtype)))

    def type(self, shape: Sequence[Size], dtype: str) -> Any:
        return relax.TensorType([expression(size) for size in shape], dtype)

    def cast_shape(self, value: Tensor, shape: Sequence[Size]) -> Tensor:
        """The same tensor under a shape that the model promises; checked at run time."""
        expr = self.builder.match_cast(value.expr, self.type(shape, value.dtype))
        return Tensor(expr, tuple(shape), value.dtype, value.nonnegative)

    def expr(self, value: Value) -> Expr:
        """The value as a tensor of the graph."""
        if isinstance(value, Tensor):
            return value.expr
        if isinstance(value, TensorList):
            raise ModelError("it takes a tensor and is given a sequence of tensors")
        if id(value) not in self._written:  # the value is kept beside, so that its id stays its own
            write = self._constant if isinstance(value, Constant) else self._size_tensor
            self._written[id(value)] = (value, write(value))  # type: ignore[arg-type]
        return self._written[id(value)][1]

    def tensor(self, value: Value) -> Tensor:
        if isinstance(value, Tensor):
            return value
        nonnegative = isinstance(value, SizeTensor) and self.is_nonnegative(value)
        return Tensor(self.expr(value), tuple(value.shape), value.dtype, nonnegative)

    def _constant(self, value: Constant) -> Expr:
        if value.dtype not in COMPUTED:
            raise ModelError(f"{value.dtype} constants can only be dequantized, not computed with")
        if value.size > SMALL:
            return self.builder.emit(self.weight(value))
        return relax.const(np.asarray(value.array(), order="C"), value.dtype)

    def _size_tensor(self, value: SizeTensor) -> Expr:
        flat = relax.ShapeExpr([expression(size) for size in value.values.ravel()])
        out = self.builder.emit(relax.op.shape_to_tensor(flat))
        if value.values.ndim != 1:
            out = self.builder.emit(relax.op.reshape(out, list(value.shape)))
        return (
            out if value.dtype == "int64" else self.builder.emit(relax.op.astype(out, value.dtype))
        )

    def weight(self, value: Constant) -> Expr:
        """The `lbc.weight` of a constant, entered in the weight table under a name of its own."""
        name, count = value.name, 1
        while self._entered.setdefault(name, value).key != value.key:
            count += 1
            name = f"{value.name}#{count}"
        self.weights.setdefault(name, value.weight)
        return ops.weight(name, value.shape, value.dtype)

    def sizes(self, value: Value | None) -> Sizes | None:
        """The elements as sizes, if the value is a small tensor of integers known by now."""
        if isinstance(value, SizeTensor):
            return value.values
        if not isinstance(value, Constant) or value.size > SIZES_LIMIT:
            return None
        array = value.array()
        return array.astype(object) if array.dtype.kind in "iub" else None

    def require_sizes(self, value: Value, what: str) -> list[Size]:
        sizes = self.sizes(value)
        if sizes is None:
            raise ModelError(
                f"{what} is computed from data, so the shape of the result is not known before the "
                "run"
            )
        return list(sizes.ravel())

    def require_array(self, value: Value, what: str) -> Array:
        """A constant that must be a number by now (an axis, a ratio)."""
        if isinstance(value, Constant):
            return value.array()
        raise ModelError(f"{what} is not a constant")

    def of_sizes(self, values: Sizes, dtype: str) -> Value:
        """The value of known or symbolic sizes."""
        if not all_known(values.ravel()):
            return SizeTensor(values, dtype)
        return self.constant(np.array(values.tolist()).reshape(values.shape).astype(dtype))

    def of_number(self, number: int) -> Constant:
        return self.constant(np.array(number, np.int64))

    def constant(self, array: Array, name: str = "") -> Constant:
        self._unnamed += not name
        return Constant(name or f"constant.{self._unnamed}", Weight.of(array))

    def is_nonnegative(self, value: Value) -> bool:
        if isinstance(value, Tensor):
            return value.nonnegative
        if isinstance(value, Constant):
            return (
                value.size <= SMALL**2
                and value.dtype.startswith("int")
                and bool((value.array() >= 0).all())
            )
        if isinstance(value, TensorList):
            return False
        return all(self.shapes.proven(expression(size) >= 0) for size in value.values.ravel())

    def broadcast(self, *values: Value) -> list[Tensor]:
        """Operands whose dimensions, where ONNX says they are equal, are written equally."""
        tensors = [self.tensor(value) for value in values]
        rank = max(len(tensor.shape) for tensor in tensors)
        want = [list(tensor.shape) for tensor in tensors]
        for k in range(1, rank + 1):
            reaching = [shape for shape in want if len(shape) >= k]
            self._agree([shape for shape in reaching if not is_one(shape[-k])], -k)
        return [self._recast(tensor, shape) for tensor, shape in zip(tensors, want, strict=True)]

    def agree_but(self, axis: int, values: Sequence[Value]) -> list[Tensor]:
        """Tensors that are equal in every dimension but `axis` (to concatenate)."""
        tensors = [self.tensor(value) for value in values]
        want = [list(tensor.shape) for tensor in tensors]
        for k in range(len(want[0])):
            if k != axis % len(want[0]):
                self._agree(want, k)
        return [self._recast(tensor, shape) for tensor, shape in zip(tensors, want, strict=True)]

    def _agree(self, shapes: list[list[Size]], axis: int) -> None:
        if len(shapes) < 2:
            return
        best = self.shapes.unify([shape[axis] for shape in shapes])
        for shape in shapes:
            if isinstance(shape[axis], int) and shape[axis] != best:
                raise ModelError(f"its operands have {best} and {shape[axis]} in dimension {axis}")
            shape[axis] = best

    def _recast(self, tensor: Tensor, shape: list[Size]) -> Tensor:
        if all(map(self.shapes.same_form, tensor.shape, shape)):
            return tensor
        return self.cast_shape(tensor, shape)

    def reshape(self, value: Value, shape: Sequence[Size]) -> Tensor:
        target = relax.ShapeExpr([expression(self.shapes.simple(size)) for size in shape])
        return self.emit(
            relax.op.reshape(self.expr(value), target),
            nonnegative=self.is_nonnegative_tensor(value),
        )

    def is_nonnegative_tensor(self, value: Value) -> bool:
        return value.dtype.startswith("int") and self.is_nonnegative(value)

    def transpose(self, value: Value, axes: Sequence[int]) -> Tensor:
        return self.emit(relax.op.permute_dims(self.expr(value), list(axes)))

    def scalar(self, number: float, dtype: str) -> Expr:
        return relax.const(np.array(number, dtype), dtype)

    def extent(self, size: Size) -> Expr:
        """A size as an int64 scalar of the graph."""
        if isinstance(size, int):
            return self.scalar(size, "int64")
        return self.expr(SizeTensor(object_array([size], ()), "int64"))

    def add_layer(
        self, node: Node, shape: Sequence[int], *, reason: str = "", has_bias: bool = False
    ) -> str:
        """Record a linear, convolution or matmul; the name it got (unique in the model)."""
        name, count = node.name, 1
        while name in self.layers:
            count += 1
            name = f"{node.name}#{count}"
        self.layers[name] = Layer(
            name=name,
            op=node.op,
            shape=tuple(int(s) for s in shape),
            output=node.outputs[0],
            output_has_bias=has_bias,
            reason=reason,
        )
        return name

    def add_batch_norm(self, node: Node) -> None:
        """Record what a layer computes behind its batch norm."""
        for name, layer in self.layers.items():
            if layer.output == node.proto.input[0]:
                self.layers[name] = replace(layer, normalized=node.outputs[0])
