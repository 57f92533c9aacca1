"""torch module -> MODEL.pt2 and MODEL.onnx, with names a person can filter layers by.

The ONNX exporter calls its nodes `node_MatMul_49` and its dimensions `s18`. It does note the module
path of each node, so a linear is renamed to that path ("encoder.layer.0.attention.self.query"),
every other node to path/Operator, and a dimension to the name its `torch.export.Dim` was given.
"""

import ast
import logging
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import torch

OPSET = 20
SCOPES = "pkg.torch.onnx.name_scopes"
Axes = Mapping[int, torch.export.Dim]
DynamicShapes = Mapping[str, Axes | Mapping[str, Axes]]


def export(
    module: torch.nn.Module,
    inputs: dict[str, torch.Tensor | dict[str, torch.Tensor]],
    dynamic_shapes: DynamicShapes,
    outputs: list[str],
    stem: Path,
    *,
    external_data: bool = False,
    program_too: bool = True,
    weights_of: Path | None = None,
) -> list[Path]:
    """Write STEM.onnx (its weights in STEM.onnx.data on demand) and STEM.pt2; the paths written.

    An argument that is a dict of tensors becomes an input for each of them. Weights that the model
    file `weights_of` of the same folder keeps beside it are not written again: STEM.onnx points to
    them.
    """
    with torch.no_grad():
        program = torch.export.export(
            module.eval(),
            (),
            kwargs=inputs,
            dynamic_shapes=dynamic_shapes,
        )
    paths = [stem.with_suffix(".onnx")]
    if program_too:
        paths.append(stem.with_suffix(".pt2"))
        torch.export.save(program, paths[1])
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it notes that torchvision is missing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # inside torch.onnx itself
        exported = torch.onnx.export(
            program,
            (),
            None,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(flat(inputs)),
            output_names=outputs,
            verbose=False,
        )
    name_nodes(exported.model)
    name_dimensions(exported.model, flat(dynamic_shapes))
    if weights_of is not None:
        share_weights(exported.model, weights_of)
    exported.save(paths[0], external_data=external_data)
    return [*paths, *stem.parent.glob(f"{paths[0].name}.data")]


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """An entry for each input: a dict under a name of an argument is its entries."""
    entries: dict[str, Any] = {}
    for name, value in nested.items():
        inner = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        entries |= value if inner else {name: value}
    return entries


def share_weights(model: onnx_ir.Model, path: Path) -> None:
    """Take every weight that `path` keeps in external data, by name, from there."""
    held = onnx_ir.load(path).graph.initializers
    for name, value in model.graph.initializers.items():
        kept = held[name].const_value if name in held else None
        if not isinstance(kept, onnx_ir.ExternalTensor):
            continue
        if not np.array_equal(kept.numpy(), value.const_value.numpy()):
            raise ValueError(
                f"{path} keeps another tensor under the name {name!r}: export it again"
            )
        value.const_value = kept


def module_path(node: onnx_ir.Node) -> str:
    """The innermost module around a node; the last scope is the traced operation itself."""
    scopes = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    if len(scopes) < 2 or scopes[-2].startswith("_empty_nn_module"):
        return ""  # outside every module: the shapes of the inputs
    return scopes[-2]


def constant_weight(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The initializer a MatMul multiplies by; a tied head has the embedding behind a Transpose."""
    if node.op_type != "MatMul":
        return None
    weight = node.inputs[1]
    maker = weight.producer()
    if maker is not None and maker.op_type == "Transpose":
        weight = maker.inputs[0]
    return weight if weight.is_initializer() else None


def name_nodes(model: onnx_ir.Model) -> None:
    """Name nodes and folded weights after modules; drop the exporter's notes afterwards."""
    seen: Counter[str] = Counter()
    for node in model.graph:
        path = module_path(node)
        weight = constant_weight(node)
        is_linear = weight is not None
        base = path if is_linear else "/".join(filter(None, (path, node.op_type)))
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        if is_linear and weight.name.startswith("val_"):
            weight.name = f"{node.name}.weight"
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    model.graph.metadata_props.clear()


def name_dimensions(model: onnx_ir.Model, axes: Mapping[str, Axes]) -> None:
    """Replace the exporter's symbols (s18) by the names of the `Dim`s they stand for."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in axes[value.name].items():
            names[str(value.shape[axis])] = dim.__name__
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        value.shape = onnx_ir.Shape(
            [d if isinstance(d, int) else renamed(str(d), names) for d in value.shape]
        )


def renamed(dimension: str, names: Mapping[str, str]) -> str:
    """A dimension, or an expression of several, by other names."""
    return re.sub(r"\w+", lambda symbol: names.get(symbol[0], symbol[0]), dimension)
