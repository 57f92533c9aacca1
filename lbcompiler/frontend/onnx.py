"""An ONNX file -> `ir.model.Model`, with its dynamic dimensions.

The importer is our own. TVM's was tried first, and with symbolic shape evaluation around it it
reads some real models, but each of its converters emits shape arithmetic as tensors (`shape_of`,
`shape_to_tensor`), which the later passes neither simplify nor always survive, and a linear's
weight and name are lost in it. Here small integer tensors are sizes (`onnx_sizes.py`), constants
are weights that load when asked (`onnx_weights.py`, `onnx_fold.py`), and a table of converters, a
topic a file, sees operands whose shapes are in simplest form. An operator without converter is
expanded through the function body of its ONNX schema if it has one, and offered to TVM's converter
if its operands are plain tensors.

Everything is computed in float32: half, bfloat16 and double are cast where they enter and leave
the model. Index operands that may be negative or out of range are wrapped and clamped, never
trusted as an address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from tvm import relax

from lbcompiler.errors import LbcError, ModelError
from lbcompiler.frontend import onnx_convert, onnx_fold, onnx_functions, onnx_sizes, onnx_tvm
from lbcompiler.frontend.onnx_graph import COMPUTED, Constant, Graph, Node, Tensor, Value
from lbcompiler.frontend.onnx_inputs import InputReader, InputShapes, growing_dims
from lbcompiler.frontend.onnx_read import MAIN, checked, read_onnx
from lbcompiler.frontend.onnx_weights import computed_type, element_type, read_weight
from lbcompiler.frontend.shapes import Size, text
from lbcompiler.ir.model import Model, Port

Values = dict[str, Value]
IN_MEMORY = Path("<model in memory>")


def import_onnx(
    model: str | Path | onnx.ModelProto, input_shapes: InputShapes | None = None
) -> Model:
    """Read an ONNX file, or a model in memory (whose external data, if any, lies in the working
    folder).

    `input_shapes` gives, by input name, each dimension as an int (fixed), a `Dim` (named and
    bounded) or a str (named, at least 1); it replaces what the file says where the file leaves a
    dimension open. A dimension name that stands at several inputs is one dimension. Raises
    ModelError for a file that cannot be read or compiled, ConfigError for shapes that contradict
    it."""
    in_memory = isinstance(model, onnx.ModelProto)
    path = IN_MEMORY if in_memory else Path(model)
    proto = checked(model, path) if in_memory else read_onnx(path)
    given = dict(input_shapes or {})
    first = _Importer(path, proto, {})
    imported = first.run(given)
    if not first.graph.shapes.promised:
        return imported
    return _Importer(path, proto, first.graph.shapes.promised).run(given)


class _Importer:
    def __init__(self, path: Path, model: onnx.ModelProto, limits: dict[str, int]) -> None:
        self.path, self.model, self.folder = path, model, path.parent
        self.limits = limits  # upper bounds of dimensions that a first reading found
        self.opsets = {"" if o.domain in MAIN else o.domain: o.version for o in model.opset_import}
        self.graph = Graph(relax.BlockBuilder())

    def run(self, given: InputShapes) -> Model:
        source = self.model.graph
        values: Values = self.initializers(source)
        entries = [entry for entry in source.input if entry.name not in values]
        reader = InputReader(self.graph, self.path, given, self.limits, growing_dims(source))
        ports = tuple(reader.ports(entries))
        try:
            results = self.function(source, ports, values)
        except Exception:
            self.graph.builder._end_block()  # else TVM complains of it on stderr
            raise
        return Model(
            module=self.graph.builder.finalize(),
            weights=self.graph.weights,
            inputs=tuple(port for port, _ in ports),
            outputs=tuple(
                Port(
                    entry.name,
                    result.dtype,
                    tuple(s if isinstance(s, int) else text(s) for s in result.shape),
                )
                for entry, result in zip(source.output, results, strict=True)
            ),
            dims=tuple(self.graph.shapes.dims.values()),
            layers=self.graph.layers,
            source=str(self.path),
        )

    def function(
        self, source: onnx.GraphProto, ports: tuple[tuple[Port, list[Size]], ...], values: Values
    ) -> list[Tensor]:
        """Emit `main`; the outputs as tensors of it."""
        builder = self.graph.builder
        variables = [
            relax.Var(port.name, self.graph.type(shape, port.dtype)) for port, shape in ports
        ]
        with builder.function("main", variables):
            with builder.dataflow():
                for variable, (port, shape) in zip(variables, ports, strict=True):
                    values[port.name] = self.entered(Tensor(variable, tuple(shape), port.dtype))
                self.nodes(source, values, self.opsets)
                results = [self.left(values, entry) for entry in source.output]
                exprs = [result.expr for result in results]
                out = exprs[0] if len(exprs) == 1 else relax.Tuple(exprs)
                bound = builder.emit_output(out)
            builder.emit_func_output(bound)
        return results

    def initializers(self, source: onnx.GraphProto) -> Values:
        if source.sparse_initializer:
            name = source.sparse_initializer[0].values.name
            raise ModelError(
                f"{str(self.path)!r} keeps {name!r} as a sparse initializer, which cannot be "
                "compiled: store it as a "
                "dense tensor."
            )
        return {
            tensor.name: Constant(tensor.name, read_weight(tensor, self.folder))
            for tensor in source.initializer
        }

    def entered(self, value: Tensor) -> Tensor:
        dtype = computed_type(value.dtype)
        if dtype not in COMPUTED:
            raise ModelError(
                f"{str(self.path)!r} has an input of type {dtype}, which only constants may have."
            )
        return (
            value if dtype == value.dtype else self.graph.emit(relax.op.astype(value.expr, dtype))
        )

    def left(self, values: Values, entry: onnx.ValueInfoProto) -> Tensor:
        """An output in its declared dtype."""
        if entry.name not in values:
            raise ModelError(f"{str(self.path)!r}: no node computes the output {entry.name!r}.")
        value = self.graph.tensor(values[entry.name])
        declared = entry.type.tensor_type.elem_type
        dtype = element_type(declared) if declared else value.dtype
        if dtype != value.dtype:
            return self.graph.emit(relax.op.astype(value.expr, dtype))
        return value

    def nodes(
        self, source: onnx.GraphProto | onnx.FunctionProto, values: Values, opsets: dict[str, int]
    ) -> None:
        """Convert the nodes that an output needs, adding their results to `values`."""
        for proto in _needed(source):
            domain = "" if proto.domain in MAIN else proto.domain
            try:
                node = self.node(proto, domain, values, opsets)
                results = self.convert(node, values)
            except _NodeError:
                raise
            except Exception as error:
                raise _located(self.path, proto, opsets.get(domain), error) from error
            for name, result in zip(proto.output, results, strict=False):
                if name and result is not None:
                    values[name] = result

    def node(
        self, proto: onnx.NodeProto, domain: str, values: Values, opsets: dict[str, int]
    ) -> Node:
        missing = [name for name in proto.input if name and name not in values]
        if missing:
            raise ModelError(
                f"its input {missing[0]!r} is neither an input of the model nor computed before "
                "it: the file is damaged"
            )
        return Node(
            name=proto.name or next(filter(None, proto.output), proto.op_type),
            op=proto.op_type,
            domain=domain,
            opset=opsets.get(domain, 1),
            inputs=tuple(values[name] if name else None for name in proto.input),
            outputs=tuple(proto.output),
            attributes={a.name: _attribute(a) for a in proto.attribute},
            proto=proto,
        )

    def convert(self, node: Node, values: Values) -> Sequence[Value | None]:
        if node.domain == "" and node.op == "Constant":
            return [self.constant(node)]
        if node.domain == "" and node.op == "If":
            return self.branch(node, values)
        known = onnx_fold.fold(self.graph, node) or onnx_sizes.evaluate(self.graph, node)
        if known is not None:
            return known
        converter = onnx_convert.find(node)
        if converter is not None:
            out = converter(self.graph, node)
            return list(out) if isinstance(out, Sequence) else [out]
        body = onnx_functions.body_of(node)
        if body is not None:
            return self.expand(node, body)
        return onnx_tvm.convert(self.graph, node)

    def constant(self, node: Node) -> Constant:
        ((kind, value),) = node.attributes.items()
        if kind == "value":
            return Constant(node.outputs[0], read_weight(value, self.folder))
        dtypes = {
            "value_float": "float32",
            "value_floats": "float32",
            "value_int": "int64",
            "value_ints": "int64",
        }
        if kind not in dtypes:
            raise ModelError(f"constants given as {kind} cannot be compiled")
        return self.graph.constant(np.array(value, dtypes[kind]), node.outputs[0])

    def branch(self, node: Node, values: Values) -> Sequence[Value | None]:
        """The branch of an If whose condition is known."""
        condition = self.graph.sizes(node[0])
        if condition is None:
            raise ModelError(
                "which branch it takes depends on data, and only a condition that the shapes of "
                "the inputs decide can be "
                "compiled; export the model with the branch resolved, or fix the input shapes that "
                "decide it"
            )
        chosen = node.attribute("then_branch" if condition.ravel()[0] else "else_branch")
        inner = {**values, **self.initializers(chosen)}
        self.nodes(chosen, inner, self.opsets)
        return [inner[entry.name] for entry in chosen.output]

    def expand(self, node: Node, body: onnx.FunctionProto) -> Sequence[Value | None]:
        """An operator through the nodes that define it."""
        inner: Values = {
            name: value
            for name, value in zip(body.input, node.inputs, strict=False)
            if value is not None
        }
        opsets = {"" if o.domain in MAIN else o.domain: o.version for o in body.opset_import}
        self.nodes(body, inner, {**self.opsets, **opsets})
        return [inner.get(name) for name in body.output]


class _NodeError(ModelError):
    """A ModelError that already names its node."""


def _located(path: Path, proto: onnx.NodeProto, opset: int | None, error: Exception) -> LbcError:
    domain = f"{proto.domain}." if proto.domain not in MAIN else ""
    version = f"opset {opset}" if opset else "of an operator set the model does not import"
    name = proto.name or ", ".join(proto.output)
    place = f"{str(path)!r}: node {name!r} ({domain}{proto.op_type}, {version})"
    if isinstance(error, LbcError):
        return _NodeError(f"{place}: {str(error).rstrip('.')}.")
    reason = " ".join(str(error).split())[-400:]
    return _NodeError(
        f"{place} could not be converted: {type(error).__name__}: {reason}. If a dimension is "
        "dynamic, try a fixed one "
        "(--input name:1x128); else export the model with another opset."
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [entry.decode(errors="replace") for entry in value]
    return (
        value
        if isinstance(value, int | float | onnx.GraphProto | onnx.TensorProto)
        else list(value)
    )


def _needed(source: onnx.GraphProto | onnx.FunctionProto) -> list[onnx.NodeProto]:
    """The nodes an output depends on, in their order."""
    wanted = {entry if isinstance(entry, str) else entry.name for entry in source.output}
    kept = []
    for node in reversed(source.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_reads(node))
    return kept[::-1]


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from (entry.name for entry in attribute.g.output)
            for inner in attribute.g.node:
                yield from _reads(inner)
