"""Translate the nodes of a torch program that its outputs need.

Every node comes with a fake tensor, so a converter only says what is computed, and the shape it
must have is checked here. Assertions and guards have no user and vanish.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.frontend.torch_build import Build, Node
from lbcompiler.frontend.torch_ramps import Ramp, fold
from lbcompiler.frontend.torch_values import Constant, dtype_name

Converter = Callable[..., Any]
Value = Any  # relax.Expr | Constant | number | list of those
WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # (setting..., graph, *inputs)


class Walk:
    """Values of the nodes, computed on demand and once."""

    def __init__(self, build: Build, converters: Mapping[str, Converter]) -> None:
        self.build = build
        self.converters = converters
        self.values: dict[Node, Value] = {}

    def run(self, nodes: Sequence[Node]) -> None:
        """Translate all live nodes; the caller has given the placeholders their values."""
        for node in nodes:
            if node not in self.values and node.op in ("call_function", "get_attr"):
                self.values[node] = self._value(node)

    def expression(self, value: Value) -> Any:
        """A node's value, or a literal, as converters take it."""
        if isinstance(value, Constant):
            return self.build.materialize(value)
        if isinstance(value, Ramp):
            return value.expression(self.build)
        if isinstance(value, list | tuple):
            return [self.expression(item) for item in value]
        return value

    def resolve(self, argument: Any) -> Value:
        if isinstance(argument, list | tuple):
            return [self.resolve(item) for item in argument]
        if isinstance(argument, slice) or not hasattr(argument, "all_input_nodes"):
            return argument
        return self.values[argument]

    def _value(self, node: Node) -> Value:
        if node.op == "get_attr":
            return self._attribute(node)
        fake = node.meta.get("val")
        if is_number(fake):
            return self._number(fake)
        name = operator_name(node)
        if name == "getitem":
            return self.resolve(node.args[0])[node.args[1]]
        if name in WRAPPERS:
            return self._inlined(node)
        arguments = self._arguments(node)
        constant = self._constant(node, arguments)
        if constant is not None:
            return constant
        self.build.node = node
        ramp = fold(self.build, name, arguments) if hasattr(fake, "shape") else None
        if ramp is not None:
            return ramp
        return self._converted(node, name, [self.expression(argument) for argument in arguments])

    def _attribute(self, node: Node) -> Value:
        owner: Any = node.graph.owning_module
        for part in str(node.target).split("."):
            owner = getattr(owner, part)
        if not hasattr(owner, "dtype"):
            return owner  # the graph of a higher-order operator
        name = str(node.target)
        return Constant(name, tuple(owner.shape), dtype_name(owner.dtype), lambda: owner, name)

    def _number(self, fake: Any) -> Value:
        if isinstance(fake, bool | int | float):
            return fake
        if type(fake).__name__ == "SymInt":
            return self.build.shapes.extent(fake)
        return _Unsized(str(fake))

    def _inlined(self, node: Node) -> Value:
        """The body of a higher-order operator that only switches a mode."""
        at = next(i for i, arg in enumerate(node.args) if getattr(arg, "op", "") == "get_attr")
        graph = self.resolve(node.args[at]).graph
        placeholders = [inner for inner in graph.nodes if inner.op == "placeholder"]
        for inner, outer in zip(placeholders, node.args[at + 1 :], strict=True):
            self.values[inner] = self.resolve(outer)
        self.run(live_nodes(graph))
        (output,) = (inner for inner in graph.nodes if inner.op == "output")
        return self.resolve(output.args[0])

    def _arguments(self, node: Node) -> list[Value]:
        """The arguments in the order of the operator's schema, defaults filled in."""
        schema = node.target._schema.arguments
        filled = [node.kwargs.get(parameter.name, parameter.default_value) for parameter in schema]
        filled[: len(node.args)] = node.args
        return [self.resolve(argument) for argument in filled]

    def _constant(self, node: Node, arguments: list[Value]) -> Value | None:
        """The node as a constant that torch computes, if nothing in it depends on an input."""
        import torch

        fake, target = node.meta["val"], node.target
        if torch.Tag.nondeterministic_seeded in target.tags or target.namespace != "aten":
            return None
        found = list(_flattened(arguments))
        if any(isinstance(item, relax.Expr | Ramp | _Unsized) for item in found):
            return None
        fakes = list(fake) if isinstance(fake, list | tuple) else [fake]
        if not all(
            isinstance(extent, int) for f in fakes for extent in self.build.shapes.tensor(f)
        ):
            return None
        names = [parameter.name for parameter in target._schema.arguments]
        keywords = dict(zip(names, arguments, strict=True))
        if keywords.get("device") is not None:
            keywords["device"] = torch.device("cpu")

        def load() -> Any:
            with torch.no_grad():
                return target(**{name: _loaded(value) for name, value in keywords.items()})

        roots = {item.root for item in found if isinstance(item, Constant)}
        root = roots.pop() if len(roots) == 1 else ""
        if not isinstance(fake, list | tuple):
            return self._kept(node.name, fake, load, root)
        return [
            self._kept(f"{node.name}.{i}", item, _item(load, i), root)
            for i, item in enumerate(fake)
        ]

    def _kept(self, name: str, fake: Any, load: Callable[[], Any], root: str) -> Constant:
        shape = tuple(self.build.shapes.tensor(fake))
        label = f"{root}.{name}" if root else name
        constant = Constant(label, shape, dtype_name(fake.dtype), load, root)
        if constant.is_held:
            tensor = load()  # once, not again for each node that follows
            return Constant(label, shape, constant.dtype, lambda: tensor, root)
        return constant

    def _converted(self, node: Node, name: str, arguments: list[Value]) -> Value:
        packet = name.split(".")[0]
        converter = self.converters.get(name) or self.converters.get(packet)
        if converter is None:
            raise ModelError(f"{describe(node)} is not supported.")  # the import checks before
        fake = node.meta["val"]
        try:
            if any(isinstance(item, _Unsized) for item in _flattened(arguments)):
                raise ModelError("it takes a number that is computed from data or from a size")
            result = converter(self.build, *arguments)
            if not isinstance(fake, list | tuple):
                return self.build.conform(self.build.emit(result), fake)
            return [
                item if item is None else self.build.conform(self.build.emit(item), expected)
                for item, expected in zip(result, fake, strict=True)
            ]
        except ModelError as error:
            raise ModelError(f"{describe(node)} cannot be translated: {error}") from None
        except Exception as error:  # TVM reports a failed inference by errors of many types
            raise ModelError(f"{describe(node)} cannot be translated: {error}") from error


def _item(load: Callable[[], Any], index: int) -> Callable[[], Any]:
    return lambda: load()[index]


class _Unsized:
    """A number that is no integer of the input shapes; it may still have no live user."""

    def __init__(self, text: str) -> None:
        self.text = text


def is_number(fake: Any) -> bool:
    return isinstance(fake, bool | int | float) or type(fake).__name__ in (
        "SymInt",
        "SymFloat",
        "SymBool",
    )


def operator_name(node: Node) -> str:
    """`linear.default` of torch.ops.aten.linear.default, `getitem` of a builtin."""
    overload = getattr(node.target, "_overloadname", "")
    packet: str = getattr(node.target, "_opname", "") or getattr(node.target, "__name__", "")
    return f"{packet}.{overload}" if overload else packet


def describe(node: Node) -> str:
    """The node for a message: name, operator, shapes, module, source line."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    shapes = [
        str(tuple(argument.meta["val"].shape))
        for argument in node.all_input_nodes
        if hasattr(argument.meta.get("val"), "shape")
    ]
    place = f" in module {path}" if path else ""
    return f"Node {node.name} ({node.target}) of the torch program{place}, on {', '.join(shapes)},"


def live_nodes(graph: Any) -> list[Node]:
    """The nodes that an output depends on, in order."""
    needed: set[Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in needed:
            needed.add(node)
            needed.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in needed]


def _flattened(value: Value) -> Any:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _flattened(item)
    else:
        yield value


def _loaded(value: Value) -> Any:
    if isinstance(value, Constant):
        return value.load()
    if isinstance(value, list | tuple):
        return [_loaded(item) for item in value]
    return value
