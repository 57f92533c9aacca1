"""Nodes whose inputs are all constant: evaluated by ONNX's own reference, now if small, else when
loaded.

A weight that passes through Transpose, Cast, DequantizeLinear or the like stays a lazy `Weight`:
its shape comes from ONNX's shape inference, its numbers from the reference when somebody asks. A
node whose result is larger than its inputs (a causal mask, an expanded vector) is not folded:
the graph computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TypeProto, defs, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import SMALL, Constant, Graph, Node
from lbcompiler.frontend.onnx_weights import computed_type, element_type, widened
from lbcompiler.ir.model import Array, Weight

RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
}
SUBGRAPHS = {"If", "Loop", "Scan", "SequenceMap"}
EAGER = SMALL  # elements in and out, up to which a node is evaluated at import


def fold(graph: Graph, node: Node) -> list[Constant] | None:
    """The outputs of a node as constants, or None if it is better computed in the graph."""
    inputs = [value for value in node.inputs if value is not None]
    if not inputs or not all(isinstance(value, Constant) for value in inputs):
        return None
    if node.op in RANDOM | SUBGRAPHS or node.domain not in ("", "ai.onnx") or "Sequence" in node.op:
        return None
    constants: list[Constant | None] = list(node.inputs)  # type: ignore[arg-type]
    if node.op == "Transpose":
        return [transposed(constants[0], node.attribute("perm"))]  # type: ignore[arg-type]
    if node.op == "Identity":
        return [constants[0]]  # type: ignore[list-item]
    size = sum(value.size for value in constants if value is not None)
    types = _infer(node, constants)
    if types is None:
        return None
    result = sum(math.prod(shape) for shape, _ in types)
    if result > max(EAGER, size):
        return None
    if max(size, result) <= EAGER:
        arrays = _evaluate(node, constants)
        return [
            Constant(name, Weight.of(widened(array)))
            for name, array in zip(node.outputs, arrays, strict=False)
        ]
    if len(types) != 1:
        return None
    (shape, dtype), name = types[0], node.outputs[0]
    return [Constant(name, Weight(shape, dtype, lambda: _lazy(node, constants, shape)))]


def transposed(constant: Constant, permutation: Sequence[int] | None) -> Constant:
    """The constant with its axes permuted; a transpose that undoes another is the origin itself."""
    rank = len(constant.shape)
    axes = tuple(permutation) if permutation is not None else tuple(reversed(range(rank)))
    origin, before = constant.origin or constant, constant.permutation or tuple(range(rank))
    total = tuple(before[axis] for axis in axes)
    if total == tuple(range(rank)):
        return origin
    suffix = "T" if total == (1, 0) else "permuted_" + "".join(map(str, total))
    shape = [origin.shape[axis] for axis in total]
    weight = origin.weight.map(shape, lambda array: array.transpose(total))
    return Constant(f"{origin.name}.{suffix}", weight, origin, total)


def _infer(
    node: Node, inputs: Sequence[Constant | None]
) -> list[tuple[tuple[int, ...], str]] | None:
    """Shapes and computed dtypes of the outputs, by ONNX's own inference."""
    try:
        schema = defs.get_schema(node.op, node.opset, "")
    except defs.SchemaError:
        return None
    proto = _renamed(node, inputs)
    types, data = {}, {}
    for name, value in zip(proto.input, inputs, strict=True):
        if value is None:
            continue
        types[name] = helper.make_tensor_type_proto(dtype_code(value.dtype), value.shape)
        if value.size <= EAGER:
            data[name] = numpy_helper.from_array(value.array(), name)
    version = helper.make_opsetid("", node.opset)
    try:
        found = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=[version]
        )
    except (onnx.shape_inference.InferenceError, RuntimeError, KeyError, ValueError):
        return None
    out = [_static(found[name]) for name in proto.output if name in found]
    return None if None in out or not out else out  # type: ignore[return-value]


def _static(found: TypeProto) -> tuple[tuple[int, ...], str] | None:
    tensor = found.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim), computed_type(
        element_type(tensor.elem_type)
    )


def dtype_code(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(_numpy_type(dtype)))


def _numpy_type(dtype: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, dtype, dtype))


def _renamed(node: Node, inputs: Sequence[Constant | None]) -> onnx.NodeProto:
    """The node with names of its own: an input used twice keeps two names."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend("" if value is None else f"in{i}" for i, value in enumerate(inputs))
    return proto


def _evaluate(node: Node, inputs: Sequence[Constant | None]) -> list[Array]:
    proto = _renamed(node, inputs)
    feeds = {
        name: value.array()
        for name, value in zip(proto.input, inputs, strict=True)
        if value is not None
    }
    try:
        outputs = ReferenceEvaluator(proto, opsets={"": node.opset}).run(None, feeds)
    except Exception as error:
        raise ModelError(f"it cannot be computed from its constant inputs ({error})") from error
    return [np.asarray(output) for output in outputs]


def _lazy(node: Node, inputs: Sequence[Constant | None], shape: tuple[int, ...]) -> Array:
    array = widened(_evaluate(node, inputs)[0])
    if array.shape != shape:
        raise ModelError(
            f"The constant of node {node.name!r} has shape {array.shape}, not {shape} as inferred."
        )
    return np.ascontiguousarray(array)
