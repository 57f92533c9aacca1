"""Operators that ONNX defines by other operators: the body, specialized to a node's types and
attributes.
"""

import onnx
from onnx import FunctionProto, defs, helper

from lbcompiler.frontend.onnx_fold import dtype_code
from lbcompiler.frontend.onnx_graph import Node
from lbcompiler.frontend.shapes import is_known


def body_of(node: Node) -> FunctionProto | None:
    """The nodes that define `node`, or None if its schema has no body."""
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
    given = {a.name: a for a in node.proto.attribute}
    for inner in body.node:
        _fill(inner, {**defaults, **given}, node.name)
    return body


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
