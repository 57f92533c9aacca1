"""Operators that ONNX defines by other operators: the body, specialized to a node's types and
attributes.
"""

import onnx
from onnx import FunctionProto, defs, helper, parser

from lbcompiler.frontend.onnx_fold import dtype_code
from lbcompiler.frontend.onnx_graph import Node
from lbcompiler.frontend.shapes import is_known

QLINEAR = {
    "QLinearMatMul": """
        (a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero) => (y) {
            af = DequantizeLinear <axis = -2> (a, a_scale, a_zero)
            bf = DequantizeLinear <axis = -1> (b, b_scale, b_zero)
            yf = MatMul(af, bf)
            y = QuantizeLinear(yf, y_scale, y_zero) }""",
    "QLinearConv": """
        <auto_pad, dilations, group, kernel_shape, pads, strides>
        (x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, b) => (y) {
            xf = DequantizeLinear(x, x_scale, x_zero)
            wf = DequantizeLinear <axis = 0> (w, w_scale, w_zero)
            b_scale = Mul(x_scale, w_scale)
            bf = DequantizeLinear <axis = 0> (b, b_scale)
            yf = Conv <auto_pad: string = @auto_pad, dilations: ints = @dilations,
                group: int = @group, kernel_shape: ints = @kernel_shape, pads: ints = @pads,
                strides: ints = @strides> (xf, wf, bf)
            y = QuantizeLinear(yf, y_scale, y_zero) }""",
}


def _qlinear(node: Node) -> FunctionProto:
    header = '<domain: "lbc", opset_import: ["" : 19]> '
    body = parser.parse_function(f"{header}{node.op} {QLINEAR[node.op]}")
    if node.op == "QLinearConv" and not node.has(8):
        kept = [inner for inner in body.node if not {"b_scale", "bf"} & set(inner.output)]
        del body.node[:]
        body.node.extend(kept)
        for inner in body.node:
            if "bf" in inner.input:
                inner.input.remove("bf")
    _specialize(node, body, {})
    return body


def body_of(node: Node) -> FunctionProto | None:
    """The nodes that define `node`, or None if its schema has no body."""
    if node.domain == "" and node.op in QLINEAR:
        return _qlinear(node)
    try:
        schema = defs.get_schema(node.op, node.opset, node.domain)
    except defs.SchemaError:
        return None
    if schema.has_context_dependent_function:
        types = [_type(value).SerializeToString() for value in node.inputs]
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= node.opset]
        version = max(versions, default=schema.context_dependent_function_opset_versions[0])
        text = schema.get_context_dependent_function_with_opset_version(
            version, node.proto.SerializeToString(), types
        )
    elif schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= node.opset]
        version = max(versions, default=schema.function_opset_versions[0])
        text = schema.get_function_with_opset_version(version)
    else:
        return None
    body = FunctionProto.FromString(text)
    defaults = {
        name: a.default_value for name, a in schema.attributes.items() if a.default_value.name
    }
    _specialize(node, body, defaults)
    return body


def _specialize(node: Node, body: FunctionProto, defaults: dict[str, onnx.AttributeProto]) -> None:
    """Put the node's attributes where the body refers to them."""
    given = {a.name: a for a in node.proto.attribute}
    for inner in body.node:
        _fill(inner, {**defaults, **given}, node.name)


def _type(value: object) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    shape = [size if is_known(size) else None for size in value.shape]  # type: ignore[attr-defined]
    return helper.make_tensor_type_proto(dtype_code(value.dtype), shape)  # type: ignore[attr-defined]


def _fill(inner: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto], prefix: str) -> None:
    """Replace references to the function's attributes, and name the node after its caller."""
    inner.name = f"{prefix}/{inner.name or inner.output[0]}"
    kept = []
    for attribute in inner.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in attributes:
                continue
            name = attribute.name
            attribute.CopyFrom(attributes[attribute.ref_attr_name])
            attribute.name = name
        kept.append(attribute)
    copies = []
    for attribute in kept:
        copy = onnx.AttributeProto()
        copy.CopyFrom(attribute)
        copies.append(copy)
    del inner.attribute[:]
    inner.attribute.extend(copies)
