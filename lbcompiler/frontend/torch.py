"""Import a torch.export program.

The graph is walked as exported, operator by operator, by converters of our own. TVM's frontend for
these programs decomposes first and infers every shape again: it then meets `permute_dims`, `view`
and `addmm` where the model said `linear`, refuses scans over a symbolic length, and takes as long
as the decomposition (half a minute for a 30-layer model). Here the operators a model was written in
stay whole, which names each layer by its module path, and all shapes come from the program itself,
so that a dynamic dimension is one variable from the input to the output (`torch_shapes`). An
operator without a converter is decomposed by torch's own table, and only what is unknown even then
is refused.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

from tvm import relax, tirx

from lbcompiler.errors import ModelError
from lbcompiler.frontend import (
    torch_elementwise,
    torch_image,
    torch_linear,
    torch_reductions,
    torch_views,
)
from lbcompiler.frontend.torch_archive import load_program
from lbcompiler.frontend.torch_build import Build
from lbcompiler.frontend.torch_shapes import Requested, bind_inputs
from lbcompiler.frontend.torch_values import Constant, dtype_name
from lbcompiler.frontend.torch_walk import (
    WRAPPERS,
    Converter,
    Walk,
    describe,
    is_number,
    live_nodes,
    operator_name,
)
from lbcompiler.ir import ops
from lbcompiler.ir.model import Model, Port

CONVERTERS: dict[str, Converter] = {
    **torch_elementwise.CONVERTERS,
    **torch_image.CONVERTERS,
    **torch_linear.CONVERTERS,
    **torch_reductions.CONVERTERS,
    **torch_views.CONVERTERS,
}


def import_torch(program: Any, input_shapes: Mapping[str, Requested] | None = None) -> Model:
    """The model of a `torch.export.ExportedProgram`, in memory or the path of a .pt2 file.

    `input_shapes`: by input name, one entry a dimension: an int fixes it, a str names it, a `Dim`
    names and bounds it (within what it was exported for). Floats of every width become float32,
    inputs and outputs too. Weights are read from the program when asked for, not copied.

    A .pt2 file is looked through before torch reads it, and refused if loading it could run code
    (`torch_archive`). Raises ModelError for such a file, for one that is no .pt2, if torch is not
    installed, for a program in training mode or with state, and for an operator, size or dtype
    that cannot be compiled, naming the node.
    """
    source = "a torch.export program in memory"
    if isinstance(program, str | os.PathLike):
        source = os.fspath(program)
        program = load_program(program)
    program = functional_program(program)
    _check_stateless(program)
    fakes = _inputs(program)
    shapes, input_extents = bind_inputs(fakes, program.range_constraints, input_shapes or {})
    build = Build(shapes)
    walk = Walk(build, CONVERTERS)
    for node, constant in _stored(program):
        walk.values[node] = constant
    parameters, placeholders = [], []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in fakes:
            type_ = relax.TensorType(input_extents[node.name], dtype_name(fakes[node.name].dtype))
            parameters.append(relax.Var(node.name, type_))
            placeholders.append(node)
    with build.bb.function("main", parameters):
        with build.bb.dataflow():
            for node, parameter in zip(placeholders, parameters, strict=True):
                walk.values[node] = build.conform(parameter, fakes[node.name])
            walk.run(live_nodes(program.graph))
            results = [walk.expression(walk.values[node]) for node in _outputs(program)]
            results = [build.emit(result) for result in results]
            body = results[0] if len(results) == 1 else relax.Tuple(results)
            body = build.bb.emit_output(body)
        build.bb.emit_func_output(body)
    module = relax.transform.DeadCodeElimination()(build.bb.get())
    inputs = tuple(_port(parameter.name, parameter) for parameter in parameters)
    names = _output_names(program)
    outputs = tuple(_port(name, result) for name, result in zip(names, results, strict=True))
    dims = tuple(shapes.dims)
    weights = _used(module, build)
    return Model(module, weights, inputs, outputs, dims, build.layers, source)


def functional_program(program: Any) -> Any:
    """The program whose node names `Layer.output` uses: without in-place operators, and with
    torch's decomposition of the operators that have no converter."""
    import torch

    if not isinstance(program, torch.export.ExportedProgram):
        raise ModelError(
            f"A torch model is imported from a torch.export.ExportedProgram or the path of a .pt2, "
            f"not from {type(program).__name__}: call torch.export.export(model.eval(), inputs)."
        )
    chosen: dict[Any, Any] = {}
    for _ in range(8):  # a decomposition may use another operator without a converter
        unknown = {node.target for node in _calls(program) if not _is_known(node)}
        table = torch.export.default_decompositions() if unknown - set(chosen) else {}
        fresh = {target: table[target] for target in unknown if target in table}
        if not fresh and not _is_mutating(program):
            break
        chosen |= fresh
        program._guards_code = []  # conditions on inputs, as source text that torch would run
        program = program.run_decompositions(chosen)
    for node in _calls(program):
        if not _is_known(node):
            raise ModelError(
                f"{describe(node)} is not supported. Rewrite that part of the model with other "
                "operators, or leave it outside of the exported program."
            )
    return program


def _calls(program: Any) -> list[Any]:
    """The live operator calls, those in the bodies of mode switches included."""
    found = []
    for module in program.graph_module.modules():
        if hasattr(module, "graph"):
            found += [node for node in live_nodes(module.graph) if node.op == "call_function"]
    numbers_and_items = [
        node
        for node in found
        if is_number(node.meta.get("val")) or operator_name(node) in ("getitem", *WRAPPERS)
    ]
    return [node for node in found if node not in set(numbers_and_items)]


def _is_mutating(program: Any) -> bool:
    """Whether any operator works in place: it need not be live, for what it changed may be."""
    return any(
        getattr(node.target, "_schema", None) is not None and node.target._schema.is_mutable
        for module in program.graph_module.modules()
        if hasattr(module, "graph")
        for node in module.graph.nodes
    )


def _is_known(node: Any) -> bool:
    name = operator_name(node)
    return name in CONVERTERS or name.split(".")[0] in CONVERTERS


def _check_stateless(program: Any) -> None:
    for output in program.graph_signature.output_specs:
        if output.kind.name != "USER_OUTPUT":
            raise ModelError(
                f"The torch program changes {output.target or output.arg.name} "
                f"({output.kind.name.lower().replace('_', ' ')}) and a compiled model keeps no "
                "state: call model.eval() before the export, and return what changes as an output."
            )


def _inputs(program: Any) -> dict[str, Any]:
    """The fake tensors of the inputs by name; inputs that were fixed at export are none."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            continue
        fake = nodes[spec.arg.name].meta.get("val") if spec.arg.name in nodes else None
        if hasattr(fake, "shape"):
            found[spec.arg.name] = fake
        elif is_number(fake) and not isinstance(fake, bool | int | float):
            raise ModelError(
                f"Input {spec.arg.name} of the torch program is a number, not a tensor: "
                "export it with a fixed value."
            )
    if not found:
        raise ModelError(
            "The torch program has no input that is a tensor: there is nothing to run."
        )
    return found


def _stored(program: Any) -> list[tuple[Any, Constant]]:
    """The placeholders of parameters, buffers and constants, with what they stand for."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            continue
        name = spec.target
        tensor = program.state_dict.get(name, program.constants.get(name))
        if tensor is None or not hasattr(tensor, "dtype"):
            raise ModelError(
                f"{name} of the torch program is no tensor ({spec.kind.name.lower()}): "
                "only parameters, buffers and constant tensors can be compiled."
            )
        found.append((nodes[spec.arg.name], _constant(name, tensor)))
    return found


def _constant(name: str, tensor: Any) -> Constant:
    return Constant(name, tuple(tensor.shape), dtype_name(tensor.dtype), lambda: tensor, name)


def _outputs(program: Any) -> list[Any]:
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    nodes = []
    for item in output.args[0]:
        if not hasattr(item, "all_input_nodes") or is_number(item.meta.get("val")):
            raise ModelError(
                f"An output of the torch program is {item}, not a tensor: return tensors only."
            )
        nodes.append(item)
    return nodes


def _output_names(program: Any) -> list[str]:
    """The keys of a dict-like output, else the nodes' names."""
    names = [node.name for node in _outputs(program)]
    keys = getattr(program.call_spec.out_spec, "context", None)
    if isinstance(keys, list) and len(keys) == len(names):
        names = [
            key if isinstance(key, str) else name for key, name in zip(keys, names, strict=True)
        ]
    return [name if name not in names[:i] else f"{name}_{i}" for i, name in enumerate(names)]


def _port(name: str, x: Any) -> Port:
    shape = tuple(_dimension(extent) for extent in x.ty.shape.values)
    return Port(name, str(x.ty.dtype.dtype), shape)


def _dimension(extent: Any) -> int | str:
    """An int, a dimension's name, or an expression of those such as `length // 2 + 1`."""
    if isinstance(extent, tirx.IntImm):
        return int(extent)
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(extent))


def _used(module: Any, build: Build) -> dict[str, Any]:
    """The weights that dead code has not taken with it."""
    used: set[str] = set()

    def visit(expression: Any) -> None:
        if ops.is_call_to(expression, ops.WEIGHT):
            used.add(str(expression.attrs["name"]))

    relax.analysis.post_order_visit(module["main"], visit)
    return {name: weight for name, weight in build.weights.items() if name in used}
