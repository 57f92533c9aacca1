"""Inputs as ports: what the file declares, made exact by what the user said."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from lbcompiler.errors import ConfigError, ModelError
from lbcompiler.frontend.onnx_graph import Graph
from lbcompiler.frontend.onnx_weights import element_type
from lbcompiler.frontend.shapes import Size
from lbcompiler.ir.model import Dim, Port

OPEN = "?"  # a dimension that stays as the file has it
InputShapes = Mapping[str, Sequence[int | str | Dim]]


class InputReader:
    """Reads all inputs at once: a dimension name that stands at several of them is one
    dimension."""

    def __init__(
        self,
        graph: Graph,
        path: Path,
        given: InputShapes,
        limits: dict[str, int],
        growing: Set[str] = frozenset(),
    ) -> None:
        self.graph, self.path, self.given, self.limits = graph, path, given, limits
        self.growing = growing
        self.said: dict[str, int | Dim] = {}  # what the user says of a dimension the file names

    def ports(self, entries: Sequence[onnx.ValueInfoProto]) -> list[tuple[Port, list[Size]]]:
        unknown = self.given.keys() - {entry.name for entry in entries}
        if unknown:
            names = ", ".join(repr(entry.name) for entry in entries)
            raise ConfigError(
                f"{str(self.path)!r} has no input {sorted(unknown)[0]!r}; its inputs are {names}."
            )
        declared = {entry.name: self.declared(entry) for entry in entries}
        for name, (_, dims) in declared.items():
            self.listen(name, dims)
        out = []
        for name, (dtype, dims) in declared.items():
            sizes = [self.size(name, axis, dim) for axis, dim in enumerate(dims)]
            shape = tuple(s if isinstance(s, int) else str(s.name) for s in sizes)
            out.append((Port(name, dtype, shape), sizes))
        return out

    def declared(self, entry: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
        if not entry.type.HasField("tensor_type"):
            raise ModelError(
                f"{str(self.path)!r}: the input {entry.name!r} is no tensor (a sequence, map or "
                "optional) and cannot be compiled."
            )
        tensor = entry.type.tensor_type
        dtype = element_type(tensor.elem_type)
        if tensor.HasField("shape"):
            return dtype, [
                _declared_dim(entry.name, axis, dim) for axis, dim in enumerate(tensor.shape.dim)
            ]
        if entry.name not in self.given:
            raise ModelError(
                f"{str(self.path)!r} does not say how many dimensions the input {entry.name!r} "
                "has: give its shape "
                f"(--input {entry.name}:1x128)."
            )
        return dtype, [f"{entry.name}_{axis}" for axis in range(len(self.given[entry.name]))]

    def listen(self, name: str, dims: list[int | str]) -> None:
        """Take what the user says of this input's dimensions."""
        given = self.given.get(name)
        if given is None:
            return
        if len(given) != len(dims):
            raise ConfigError(
                f"The input {name!r} of {str(self.path)!r} has {len(dims)} dimensions {dims}, and "
                f"{len(given)} were given."
            )
        for axis, (dim, say) in enumerate(zip(dims, given, strict=True)):
            if say == OPEN:
                continue
            say = Dim(say) if isinstance(say, str) else say
            if isinstance(say, Dim) and not say.name and isinstance(dim, str):
                say = replace(say, name=dim)
            if isinstance(dim, int):
                if not (
                    say == dim
                    if isinstance(say, int)
                    else say.low <= dim and dim <= (say.high or dim)
                ):
                    raise ConfigError(
                        f"Dimension {axis} of the input {name!r} is {dim} in {str(self.path)!r} "
                        f"and cannot become {say}."
                    )
                continue
            if isinstance(say, int) and say < 0:
                raise ConfigError(f"Dimension {axis} of the input {name!r} cannot be {say}.")
            if self.said.setdefault(dim, say) != say:
                raise ConfigError(
                    f"The dimension {dim!r} of {str(self.path)!r} was given as {self.said[dim]} "
                    f"and, at the input {name!r}, as "
                    f"{say}: it is one dimension and has one size."
                )

    def size(self, name: str, axis: int, dim: int | str) -> Size:
        if isinstance(dim, int):
            return dim
        say = self.said.get(dim, Dim(dim, low=0 if dim in self.growing else 1))
        if isinstance(say, int):
            return say
        limit = self.limits.get(say.name)
        if limit is not None:
            say = replace(say, high=limit if say.high is None else min(limit, say.high))
        return self.graph.shapes.variable(say)


def growing_dims(source: onnx.GraphProto) -> set[str]:
    """Names of dimensions along which an input is only read by a Concat, as its first operand: a
    past, which nothing has come before at the first call.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in source.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = set()
    for entry in source.input:
        shape = entry.type.tensor_type.shape.dim
        nodes = [node for node in readers.get(entry.name, ()) if node.op_type != "Shape"]
        if len(nodes) != 1 or nodes[0].op_type != "Concat" or nodes[0].input[0] != entry.name:
            continue
        axis = next(a.i for a in nodes[0].attribute if a.name == "axis") % max(1, len(shape))
        if len(nodes[0].input) > 1 and axis < len(shape):
            label = _declared_dim(entry.name, axis, shape[axis])
            found |= {label} if isinstance(label, str) else set()
    return found


def _declared_dim(name: str, axis: int, dim: Any) -> int | str:
    """A number, or a name: exporters also write 0, -1, '?' and nothing for an open dimension."""
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    label = re.sub(r"\W+", "_", dim.dim_param).strip("_")
    return (
        label
        if label and not label[0].isdigit()
        else f"{re.sub(r'[^0-9A-Za-z_]+', '_', name)}_{axis}"
    )
