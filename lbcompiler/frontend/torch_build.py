"""The Relax function under construction, as the converters of torch operators see it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax, tirx

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_shapes import Extent, Shapes
from lbcompiler.frontend.torch_values import Constant, dtype_name, is_tensor
from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Weight

LARGEST = float(np.finfo(np.float32).max)
Expr = Any
Node = Any  # torch.fx.Node


class Build:
    """Emits Relax, keeps the weight table and the layers; `node` is the one being converted."""

    def __init__(self, shapes: Shapes) -> None:
        self.bb = relax.BlockBuilder()
        self.shapes = shapes
        self.weights: dict[str, Weight] = {}
        self.layers: dict[str, Layer] = {}
        self.node: Node = None
        self._emitted: dict[str, Expr] = {}
        self._constants: dict[Any, Constant] = {}

    def emit(self, expression: Expr) -> Expr:
        """A variable for the expression, which may be one already."""
        return expression if isinstance(expression, relax.Var) else self.bb.emit(expression)

    @property
    def out(self) -> Any:
        """The fake tensor that torch computed for the node (the first of several)."""
        fake = self.node.meta["val"]
        return fake[0] if isinstance(fake, list | tuple) else fake

    @property
    def out_shape(self) -> list[Extent]:
        return self.shapes.tensor(self.out)

    @property
    def out_dtype(self) -> str:
        return dtype_name(self.out.dtype)

    def shape(self, x: Expr) -> list[Extent]:
        """The extents of an emitted tensor, ints where they are fixed."""
        return [int(d) if isinstance(d, tirx.IntImm) else d for d in x.ty.shape.values]

    def dtype(self, x: Expr) -> str:
        return str(x.ty.dtype.dtype)

    def cast(self, x: Expr, dtype: str) -> Expr:
        return x if self.dtype(x) == dtype else self.emit(relax.op.astype(x, dtype))

    def reshape(self, x: Expr, shape: Sequence[Extent]) -> Expr:
        if self._is_shaped(x, shape):
            return x
        return self.emit(relax.op.reshape(x, list(shape)))

    def broadcast(self, x: Expr, shape: Sequence[Extent]) -> Expr:
        if self._is_shaped(x, shape):
            return x
        return self.emit(relax.op.broadcast_to(x, list(shape)))

    def slice(self, x: Expr, axis: int, begin: Extent, end: Extent, step: int = 1) -> Expr:
        """x[begin:end:step] along an axis, 0 <= begin <= end <= its extent."""
        if step == 1 and begin == 0 and self.shapes.same(end, self.shape(x)[axis]):
            return x
        bounds = ([axis], [begin], [end], [step])
        return self.emit(relax.op.strided_slice(x, *bounds, assume_inbound=True))

    def iota(self, extent: Extent) -> Expr:
        """0, 1, ..., extent - 1 as int64."""
        return self.emit(relax.op.arange(0, extent, 1, "int64"))

    def scalar(self, value: Any, dtype: str) -> Expr:
        """A Python number or a symbolic size as a tensor that broadcasts."""
        if not isinstance(value, int | float):
            counter = self.emit(relax.op.arange(value, value + 1, 1, "int64"))
            return self.cast(self.reshape(counter, []), dtype)
        if dtype == "float32" and np.isfinite(value):  # float64's smallest number fills masks
            value = np.clip(value, -LARGEST, LARGEST)
        return relax.const(np.array(value, dtype), dtype)

    def operand(self, value: Any, dtype: str) -> Expr:
        """A tensor or number, in the dtype of the computation."""
        return self.cast(value, dtype) if is_tensor(value) else self.scalar(value, dtype)

    def materialize(self, constant: Constant) -> Expr:
        """The constant as an expression: held by the IR, or a call of `lbc.weight`."""
        if constant.is_held:
            if constant.name not in self._emitted:
                held = relax.const(constant.array(), constant.dtype)
                self._emitted[constant.name] = held
                self._constants[held] = constant
            return self._emitted[constant.name]
        return self.weight(constant)

    def weight(self, constant: Constant) -> Expr:
        """A call of `lbc.weight`, whatever the size."""
        if constant.name in self.weights:
            return self._emitted[constant.name]
        self.weights[constant.name] = constant.weight()
        call = self.emit(ops.weight(constant.name, constant.shape, constant.dtype))
        self._emitted[constant.name] = call
        self._constants[call] = constant
        return call

    def constant_of(self, x: Expr) -> Constant | None:
        """The constant that an expression stands for."""
        return self._constants.get(x)

    def module(self) -> tuple[str, str]:
        """(path, class) of the innermost torch module the node was called in."""
        stack = self.node.meta.get("nn_module_stack") or {"": ("", "")}
        path, kind = list(stack.values())[-1]
        kind = kind if isinstance(kind, str) else kind.__name__
        return str(path).split("@")[0], kind.rsplit(".", 1)[-1]

    def layer_name(self, constant: Constant | None = None) -> str:
        """The path of the linear or convolution, unique: a second call of a module is `path@1`.

        The parameter's own name decides, except for a parameter tied to another module's.
        """
        path, kind = self.module()
        owner = "" if constant is None else constant.root.removesuffix("weight").rstrip("._")
        has_weight = kind.startswith("Conv") or kind.endswith(("Linear", "Conv1D"))
        fallback = f"{path}.{self.node.name}" if path else self.node.name
        name = path if path and has_weight and constant is not None else owner or fallback
        called = sum(layer.split("@")[0] == name for layer in self.layers)
        return f"{name}@{called}" if called else name

    def record(self, layer: Layer) -> None:
        self.layers[layer.name] = layer

    def record_batch_norm(self) -> None:
        """The node is the batch norm of what a layer computes."""
        for name, layer in self.layers.items():
            if layer.output == self.node.args[0].name:
                self.layers[name] = replace(layer, normalized=self.node.name)

    def conform(self, x: Expr, fake: Any) -> Expr:
        """`x` with the dtype and shape that torch states: a shape that TVM cannot prove to be
        that is checked at run time."""
        expected = self.shapes.tensor(fake)
        x = self.cast(x, dtype_name(fake.dtype))
        if self._is_shaped(x, expected):
            return x
        known = x.ty.shape is not None and len(self.shape(x)) == len(expected)
        if known and any(
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(self.shape(x), expected, strict=True)
        ):
            raise ModelError(f"its shape is {x.ty.shape} where torch has {tuple(fake.shape)}")
        return self.bb.match_cast(x, relax.TensorType(expected, self.dtype(x)))

    def _is_shaped(self, x: Expr, shape: Sequence[Extent]) -> bool:
        if x.ty.shape is None or len(x.ty.shape) != len(shape):
            return False
        return all(self.shapes.same(a, b) for a, b in zip(self.shape(x), shape, strict=True))
