"""TVM's own converters, for operators that have none here and take plain tensors.

They are the last resort: one may emit shape arithmetic that only static shapes survive, so what
it returns must have a shape that is known.
"""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from lbcompiler.errors import ModelError
from lbcompiler.frontend.onnx_graph import Graph, Node, Tensor
from lbcompiler.frontend.shapes import all_known

TRIED = {"GridSample", "MaxRoiPool", "RoiAlign"}


def convert(graph: Graph, node: Node) -> list[Tensor]:
    """The outputs of a node by TVM's converter, or a ModelError if it has none."""
    converters = onnx_frontend._get_convert_map()
    if node.domain != "" or node.op not in converters or node.op not in TRIED:
        raise ModelError(
            "no converter exists for this operator; export the model with another opset or "
            "exporter so that it is "
            "written in basic operators, or compute it outside of the model"
        )
    if node.op == "RoiAlign" and node.attribute("mode", "avg") != "avg":
        raise ModelError("RoiAlign by maximum cannot be compiled: TVM's differs from ONNX's")
    open_ = [value for value in node.inputs if value is not None and not all_known(value.shape)]
    if open_:
        raise ModelError(
            "this operator needs static shapes: fix the input shapes (--input name:1x128)"
        )
    inputs = onnx_frontend.onnx_input()
    inputs.extend(None if value is None else graph.expr(value) for value in node.inputs)
    attributes: dict[str, Any] = {
        **node.attributes,
        "tvm_custom": {"name": node.name, "num_outputs": len(node.outputs)},
    }
    run = converters[node.op].get_converter(node.opset)
    result = graph.builder.normalize(run(graph.builder, inputs, attributes, [{}, {}]))
    if isinstance(result.ty, relax.TensorType):
        return [graph.emit(result)]
    bound = graph.builder.emit(result)
    return [graph.emit(relax.TupleGetItem(bound, i)) for i in range(len(result.ty.fields))]
