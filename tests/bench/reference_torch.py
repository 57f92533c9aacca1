"""The reference for a `torch.export` program: its linears in numpy, everything else in torch.

Only `aten.linear` with a parameter as weight is rounded: it is what the built programs have.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.bench.fake_quantized import Array, Following, Quantization, linear

LINEAR = torch.ops.aten.linear.default


class TorchReference:
    """Call it with inputs by name; outputs by the names that the program gives them, in order.

    `exclude` names modules ("encoder.layer.0.attention.self.query") that stay float. `layers` maps
    the name of a quantized linear to the shape (N, K) of its weight.
    """

    def __init__(
        self, path: Path | str, quantization: Quantization, exclude: Collection[str] = ()
    ) -> None:
        program = torch.export.load(path)
        signature = program.graph_signature
        self.inputs = [str(name) for name in signature.user_inputs]
        self.outputs = [str(name) for name in signature.user_outputs]
        self.module = program.module()
        self.quantization = quantization
        self.names = {
            node: name
            for node in self.module.graph.nodes
            if node.target is LINEAR and (name := module_path(node)) not in exclude
        }
        self.weights: dict[str, Array] = {}

    @property
    def layers(self) -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(self.module.get_parameter(node.args[1].target).shape)
            for node, name in self.names.items()
        }

    def __call__(
        self, feeds: Mapping[str, Array], follow: Following | None = None
    ) -> dict[str, Array]:
        """`follow` gives the activations to round instead of the model's own."""
        arguments = [torch.from_numpy(feeds[name]) for name in self.inputs]
        with torch.no_grad():
            results = Rounding(self, follow).run(*arguments)
        leaves = torch.utils._pytree.tree_leaves(results)
        return {n: leaf.numpy() for n, leaf in zip(self.outputs, leaves, strict=True)}

    def linear(
        self, follow: Following | None, name: str, x: Array, w: Array, bias: Array | None = None
    ) -> Array:
        x = self.quantization.read(name, x)
        x = x if follow is None else follow.instead_of(x, name)
        if name not in self.weights:
            self.weights[name] = self.quantization.weight(name, w)
        rounded, bias = self.quantization.activation(name, x), self.quantization.bias(name, w, bias)
        y = linear(rounded, self.weights[name], bias)
        return self.quantization.result(name, w, x, y, follow)


class Rounding(torch.fx.Interpreter):
    """Runs the graph; a linear with a name in the reference is the reference's."""

    def __init__(self, reference: TorchReference, follow: Following | None) -> None:
        super().__init__(reference.module)
        self.reference, self.follow = reference, follow

    def run_node(self, node: torch.fx.Node) -> Any:
        name = self.reference.names.get(node)
        if name is None:
            return super().run_node(node)
        tensors, _ = self.fetch_args_kwargs_from_env(node)
        arrays = (None if tensor is None else tensor.numpy() for tensor in tensors)
        return torch.from_numpy(self.reference.linear(self.follow, name, *arrays))


def module_path(node: torch.fx.Node) -> str:
    """The path of the innermost module around a node of an exported program."""
    path, _ = list(node.meta["nn_module_stack"].values())[-1]
    return str(path)
