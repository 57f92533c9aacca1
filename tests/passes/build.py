"""Small models for the pass tests, written as a function of Relax variables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.model import Layer, Model, Port, Weight
from lbcompiler.ir.rewrite import rewrite
from lbcompiler.ir.verify import verify


class Body:
    """Emits what it is given; `weight` draws a seeded tensor into the table."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self.weights: dict[str, Weight] = {}
        self.layers: dict[str, Layer] = {}

    def __call__(self, expr: Any) -> Any:
        return self.builder.emit(expr)

    def weight(self, name: str, *shape: int) -> Any:
        seed = np.random.default_rng(len(self.weights))
        self.weights[name] = Weight.of(seed.standard_normal(shape).astype(np.float32))
        return self(ops.weight(name, shape))

    def layer(
        self, name: str, op: str = "MatMul", shape: Sequence[int] = (8, 64), **fields: Any
    ) -> str:
        self.layers[name] = Layer(name, op, tuple(shape), **fields)
        return name


def model_of(inputs: Mapping[str, Sequence[int | str]], write: Callable[..., Any]) -> Model:
    """A valid model; `write(body, *inputs)` returns its output. A string dimension is symbolic."""
    builder, dims = relax.BlockBuilder(), {}
    params = [
        relax.Var(
            name,
            relax.TensorType(
                [
                    dims.setdefault(d, tvm.tirx.Var(d, "int64")) if isinstance(d, str) else d
                    for d in shape
                ],
                "float32",
            ),
        )
        for name, shape in inputs.items()
    ]
    body = Body(builder)
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(write(body, *params))
        builder.emit_func_output(out)
    ports = tuple(Port(name, "float32", tuple(shape)) for name, shape in inputs.items())
    outputs = (Port("y", "float32", ()),)
    model = Model(builder.get(), body.weights, ports, outputs, layers=body.layers)
    verify(model)
    return model


def same_ir(module: Any, expected: Model) -> None:
    """Structural equality of `main`, the expected one as a rewrite leaves it."""
    untouched = rewrite(expected.module, lambda call, scope: None)
    tvm.ir.assert_structural_equal(module["main"], untouched["main"], True)
