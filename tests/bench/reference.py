"""An ONNX model with block-scaled linears, without TVM: numpy for them, onnxruntime for the rest.

The graph is cut at its quantized nodes. A value's level is the largest number of quantized nodes
on a way to it; all other nodes of one level form one segment, run by one onnxruntime session, so
that a transformer of 210 linears needs about 120 small sessions. In turn: segment 0, the
quantized nodes that read level 0, segment 1, ... Sessions are made on first use, when their
inputs' types are known.

A batch normalization right after a quantized convolution is folded into its weight first, as the
compiler does: rounding happens after folding.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from tests.bench.fake_quantized import (
    Array,
    Following,
    Quantization,
    conv_weight_rows,
    linear,
    windows,
)

INLINE_BYTES = 1 << 16  # larger constants are fed to a segment, not copied into its protobuf


@dataclass(frozen=True)
class QuantizedNode:
    """A MatMul, Gemm or Conv with its weight as float rows (N, K) and what it does around them."""

    node: onnx.NodeProto
    weight: Array
    bias: Array | None
    output: str
    kernel: tuple[int, ...] = ()  # (kh, kw) of a convolution
    axes: int = 0  # of a convolution: 2, or 1 (then kh is 1)


class Reference:
    """Call it with inputs by name; it returns the outputs by name.

    `exclude` names nodes that stay float. `layers` maps a quantized node's name to the shape (N,
    K) of its weight.
    """

    def __init__(
        self,
        model_path: Path | str,
        quantization: Quantization,
        exclude: Collection[str] = (),
    ) -> None:
        model = onnx.load(model_path)
        self.opsets, self.ir_version = list(model.opset_import), model.ir_version
        self.outputs = [value.name for value in model.graph.output]
        self.quantization = quantization
        self.constants, nodes = split_constants(model)
        self.constants |= self._run_constant_nodes(nodes)
        nodes = [n for n in nodes if not all(name in self.constants for name in n.output)]
        self.quantized, self.rest = self._find_quantized(nodes, exclude)
        self.weights: dict[str, Array] = {}
        self.sessions: dict[int, tuple[onnxruntime.InferenceSession, list[str], list[str]]] = {}
        self._assign_levels(nodes)

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        found = {layer.node.name: layer.weight.shape for layer in self.quantized.values()}
        for name, (n, _) in list(found.items()):
            found |= {part: (n, k) for part, k in self.quantization.outliers(name).items()}
        return found

    def __call__(
        self, feeds: Mapping[str, Array], follow: Following | None = None
    ) -> dict[str, Array]:
        """`follow` gives the activations to round instead of the model's own."""
        values: dict[str, Array] = {**self.constants, **feeds}
        rounded: dict[tuple[str, tuple[int, ...]], tuple[Array, Array]] = {}
        for level in range(self.depth + 1):
            self._run_segment(level, values)
            for layer in self.by_level[level]:
                rows = self._rounded_rows(layer, values, rounded, follow)
                values[layer.output] = self._run_quantized(layer, *rows, follow)
        return {name: values[name] for name in self.outputs}

    def _run_constant_nodes(self, nodes: list[onnx.NodeProto]) -> dict[str, Array]:
        """Values of the nodes that depend on constants only (a transposed embedding as head)."""
        known, found = set(self.constants), []
        for node in nodes:
            if node.input and all(name in known for name in node.input if name):
                known |= set(node.output)
                found.append(node)
        names = [name for node in found for name in node.output if name]
        if not names:
            return {}
        session, fed = self._session(found, names, self.constants)
        return dict(
            zip(names, session.run(names, {n: self.constants[n] for n in fed}), strict=True)
        )

    def _find_quantized(
        self, nodes: list[onnx.NodeProto], exclude: Collection[str]
    ) -> tuple[dict[str, QuantizedNode], list[onnx.NodeProto]]:
        """Quantized nodes by their output, and the nodes left for onnxruntime, in graph order."""
        readers = defaultdict(list)
        for node in nodes:
            for name in node.input:
                readers[name].append(node)
        quantized: dict[str, QuantizedNode] = {}
        folded: set[str] = set()
        for node in nodes:
            if node.name in exclude:
                continue
            layer = as_quantized(node, self.constants)
            if layer is None:
                continue
            following = readers[node.output[0]]
            if node.op_type == "Conv" and [n.op_type for n in following] == ["BatchNormalization"]:
                layer = fold_batch_normalization(layer, following[0], self.constants)
                folded.add(layer.output)
            quantized[layer.output] = layer
        skipped = folded | {layer.node.output[0] for layer in quantized.values()}
        return quantized, [node for node in nodes if node.output[0] not in skipped]

    def _assign_levels(self, nodes: list[onnx.NodeProto]) -> None:
        level: dict[str, int] = defaultdict(int)
        self.segments: dict[int, list[onnx.NodeProto]] = defaultdict(list)
        self.by_level: dict[int, list[QuantizedNode]] = defaultdict(list)
        rest = {id(node) for node in self.rest}
        starts = {id(layer.node): layer for layer in self.quantized.values()}
        for node in nodes:
            own = max((level[name] for name in node.input if name), default=0)
            if id(node) in starts:
                layer = starts[id(node)]
                self.by_level[own].append(layer)
                level[layer.output] = own + 1
            elif id(node) in rest:
                self.segments[own].append(node)
                level.update(dict.fromkeys(node.output, own))
        self.depth = max([*self.segments, *self.by_level], default=0)

    def _read_after(self, level: int) -> set[str]:
        """Names that later segments, quantized nodes from this level on, or the caller read."""
        later = [n for at, nodes in self.segments.items() if at > level for n in nodes]
        heads = [s.node for at, found in self.by_level.items() if at >= level for s in found]
        return {name for node in [*later, *heads] for name in node.input} | set(self.outputs)

    def _run_segment(self, level: int, values: dict[str, Array]) -> None:
        nodes = self.segments[level]
        if not nodes:
            return
        if level not in self.sessions:
            made = [name for node in nodes for name in node.output if name]
            wanted = sorted(set(made) & self._read_after(level))
            self.sessions[level] = (*self._session(nodes, wanted, values), wanted)
        session, fed, wanted = self.sessions[level]
        results = session.run(wanted, {name: values[name] for name in fed})
        values.update(zip(wanted, results, strict=True))

    def _session(
        self, nodes: Iterable[onnx.NodeProto], wanted: list[str], values: Mapping[str, Array]
    ) -> tuple[onnxruntime.InferenceSession, list[str]]:
        """A session over some nodes, and the names of the values it is to be fed."""
        nodes = list(nodes)
        made = {name for node in nodes for name in node.output}
        read = sorted({name for node in nodes for name in node.input if name} - made)
        inline = [
            name
            for name in read
            if name in self.constants and self.constants[name].nbytes <= INLINE_BYTES
        ]
        fed = [name for name in read if name not in set(inline)]
        graph = onnx.helper.make_graph(
            nodes,
            "segment",
            [
                onnx.helper.make_tensor_value_info(
                    name,
                    onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype),
                    [None] * values[name].ndim,
                )
                for name in fed
            ],
            [onnx.ValueInfoProto(name=name) for name in wanted],  # onnxruntime infers the types
            [numpy_helper.from_array(self.constants[name], name) for name in inline],
        )
        model = onnx.helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 2
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return session, fed

    def _rounded_rows(
        self,
        layer: QuantizedNode,
        values: Mapping[str, Array],
        rounded: dict[tuple[str, tuple[int, ...]], tuple[Array, Array]],
        follow: Following | None,
    ) -> tuple[Array, Array]:
        """(..., K) before and after rounding; `rounded` shares one among the layers that read a
        value alike.
        """
        name = layer.node.input[0]
        key = (name, geometry(layer) if layer.kernel else ())
        if key in rounded and follow is None:
            return rounded[key]
        rows = convolution_rows(values[name], layer) if layer.kernel else values[name]
        rows = self.quantization.read(layer.node.name, rows)
        if follow is not None:
            rows = follow.instead_of(rows, layer.node.name)
        rounded[key] = rows, self.quantization.activation(layer.node.name, rows)
        return rounded[key]

    def _run_quantized(
        self, layer: QuantizedNode, read: Array, rows: Array, follow: Following | None
    ) -> Array:
        name = layer.node.name
        if layer.output not in self.weights:
            self.weights[layer.output] = self.quantization.weight(name, layer.weight)
        bias = self.quantization.bias(name, layer.weight, layer.bias)
        y = linear(rows, self.weights[layer.output], bias)
        y = self.quantization.result(name, layer.weight, read, y, follow)
        if not layer.kernel:
            return y
        y = np.moveaxis(y, -1, 1)
        return y[:, :, 0] if layer.axes == 1 else y


def split_constants(model: onnx.ModelProto) -> tuple[dict[str, Array], list[onnx.NodeProto]]:
    """Initializers and `Constant` nodes by name, and the other nodes."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Constant":
            nodes.append(node)
            continue
        value = onnx.helper.get_attribute_value(node.attribute[0])
        if isinstance(value, onnx.TensorProto):
            value = numpy_helper.to_array(value)
        constants[node.output[0]] = np.asarray(value)
    return constants, nodes


def attributes_of(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def as_quantized(node: onnx.NodeProto, constants: Mapping[str, Array]) -> QuantizedNode | None:
    """The node with its weight as (N, K), or None where the compiler leaves it in float."""
    if node.op_type not in ("MatMul", "Gemm", "Conv") or node.input[1] not in constants:
        return None
    w, attributes = constants[node.input[1]], attributes_of(node)
    has_bias = len(node.input) > 2 and node.input[2]
    bias = constants[node.input[2]] if has_bias else None
    if node.op_type == "MatMul":
        return QuantizedNode(node, w.T, None, node.output[0]) if w.ndim == 2 else None
    if node.op_type == "Gemm":
        return gemm(node, w, bias, attributes)
    axes = w.ndim - 2
    if attributes.get("group", 1) != 1 or axes > 2:
        return None
    w = w[:, :, None] if axes == 1 else w
    return QuantizedNode(node, conv_weight_rows(w), bias, node.output[0], w.shape[2:], axes)


def gemm(
    node: onnx.NodeProto, w: Array, bias: Array | None, attributes: Mapping[str, object]
) -> QuantizedNode | None:
    if attributes.get("transA", 0):
        return None
    w = w if attributes.get("transB", 0) else w.T
    w = w * np.float32(attributes.get("alpha", 1.0))
    if bias is not None:
        bias = np.broadcast_to(bias * np.float32(attributes.get("beta", 1.0)), (w.shape[0],))
    return QuantizedNode(node, w, bias, node.output[0])


def fold_batch_normalization(
    layer: QuantizedNode, norm: onnx.NodeProto, constants: Mapping[str, Array]
) -> QuantizedNode:
    """(w x + b - mean) g + beta = (g w) x + (b - mean) g + beta, g = gamma / sqrt(var + eps)."""
    gamma, beta, mean, variance = (constants[n].astype(np.float64) for n in norm.input[1:5])
    gain = gamma / np.sqrt(variance + attributes_of(norm).get("epsilon", 1e-5))
    bias = 0.0 if layer.bias is None else layer.bias
    return QuantizedNode(
        layer.node,
        (layer.weight * gain[:, None]).astype(np.float32),
        ((bias - mean) * gain + beta).astype(np.float32),
        norm.output[0],
        layer.kernel,
        layer.axes,
    )


def geometry(layer: QuantizedNode) -> tuple[int, ...]:
    """kh, kw, strides, padding (top left bottom right), dilation: ten, of a 1-D node too."""
    attributes = attributes_of(layer.node)
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ValueError(f"{layer.node.name}: auto_pad {attributes['auto_pad']} has no reference")
    axes = layer.axes
    strides = attributes.get("strides", [1] * axes)
    dilation = attributes.get("dilations", [1] * axes)
    padding = attributes.get("pads", [0] * (2 * axes))
    if axes == 1:
        strides, dilation, padding = [1, *strides], [1, *dilation], [0, padding[0], 0, padding[1]]
    return (*layer.kernel, *strides, *padding, *dilation)


def convolution_rows(x: Array, layer: QuantizedNode) -> Array:
    """The windows of NCHW (or NCL) input that a convolution multiplies by its weight rows."""
    numbers = geometry(layer)
    x = x[:, :, None] if x.ndim == 3 else x
    return windows(x, numbers[:2], numbers[2:4], numbers[4:8], numbers[8:])


def reference_outputs(
    model_path: Path | str,
    feeds: Mapping[str, Array],
    *,
    format: str,
    act_format: str,
    scale_rule: str | None = None,
    act_scale_rule: str | None = None,
    exclude: Collection[str] = (),
) -> dict[str, Array]:
    """One run of `Reference`: outputs by name of the model with these formats and rules."""
    quantization = Quantization(format, act_format, scale_rule, act_scale_rule)
    return Reference(model_path, quantization, exclude)(feeds)
