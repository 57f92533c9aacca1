"""main  ->  segment_0, linears, segment_1, linears, .. , segment_n

The linears that read one x are a group. A value belongs to the first segment that can compute it,
so a group's linears are all that stands between two segments, and a model can be run with its
linears done by somebody else: observed, with other weights, or on many batches in step. Weights
become parameters of the segment that uses them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from lbcompiler.errors import ModelError
from lbcompiler.ir import ops
from lbcompiler.ir.constants import is_constant
from lbcompiler.ir.rewrite import bindings, operands, substitute


@dataclass(frozen=True)
class Group:
    """Linears that read one x (.., k), in their order; they share rotation, smoothing, format."""

    layers: tuple[str, ...]
    k: int

    @property
    def name(self) -> str:
        return self.layers[0]


@dataclass(frozen=True)
class Segment:
    """A function of the module: the values it takes and gives, in order, by their variables.

    `weights` are names of the weight table, parameters behind the values. `function` is empty
    where there is nothing to compute."""

    function: str
    takes: tuple[Any, ...]
    weights: tuple[str, ...]
    gives: tuple[Any, ...]


@dataclass(frozen=True)
class Linear:
    """y = x @ weight^T [+ bias], by names of the weight table; a bias may be a constant too."""

    layer: str
    weight: str
    bias: Any
    y: Any


@dataclass(frozen=True)
class Stage:
    """A group's linears over its x."""

    group: Group
    x: Any
    linears: tuple[Linear, ...]


@dataclass(frozen=True)
class Split:
    """`segments[0]`, `stages[0]`, `segments[1]`, ..: one segment more than stages."""

    module: Any
    segments: tuple[Segment, ...]
    stages: tuple[Stage, ...]
    inputs: tuple[Any, ...]
    results: tuple[Any, ...]


def split(module: Any) -> Split:
    """The segments of `main`, whose ops but for `lbc.dense` a target can build."""
    main = module["main"]
    known = {b.var: b.value for b in bindings(main)}
    stages = _stages(main, known)
    after = {linear.y: i + 1 for i, stage in enumerate(stages) for linear in stage.linears}
    parts: dict[int, list[Any]] = defaultdict(list)
    level: dict[Any, int] = dict.fromkeys(main.params, 0)
    for binding in bindings(main):
        if ops.is_call_to(binding.value, ops.WEIGHT):
            continue
        first = max((level[v] for v in _variables([binding.value]) if v in level), default=0)
        level[binding.var] = after.get(binding.var, first)
        if binding.var not in after:
            parts[first].append(binding)
    results = _results(main.body.body, known)
    wanted: dict[Any, int] = {}  # variable -> the last segment that takes it
    for i, part in parts.items():
        wanted |= {v: max(i, wanted.get(v, 0)) for v in _variables(b.value for b in part)}
    for i, stage in enumerate(stages):
        wanted[stage.x] = max(i + 1, wanted.get(stage.x, 0))
    wanted |= {v: len(stages) + 1 for v in _variables(results)}
    written = _Writer(module, known)
    segments = tuple(
        written.segment(i, parts[i], [b.var for b in parts[i] if wanted.get(b.var, 0) > i])
        for i in range(len(stages) + 1)
    )
    return Split(written.module, segments, stages, tuple(main.params), results)


def _stages(main: Any, known: dict[Any, Any]) -> tuple[Stage, ...]:
    found: dict[Any, list[Linear]] = {}
    for binding in bindings(main):
        if ops.is_call_to(binding.value, ops.DENSE):
            x, weight, *bias = binding.value.args
            layer = str(binding.value.attrs["layer"])
            held = [known.get(v, v) for v in (weight, *bias)]
            if not (ops.is_call_to(held[0], ops.WEIGHT) and all(map(is_constant, held[1:]))):
                raise ModelError(
                    f"layer {layer!r} has a weight or bias that is computed when the model runs, "
                    "so it cannot be calibrated"
                )
            names = [str(v.attrs["name"]) if ops.is_call_to(v, ops.WEIGHT) else v for v in held]
            linear = Linear(layer, names[0], names[1] if bias else None, binding.var)
            found.setdefault(x, []).append(linear)
    return tuple(
        Stage(
            Group(tuple(linear.layer for linear in linears), int(x.ty.shape.values[-1])),
            x,
            tuple(linears),
        )
        for x, linears in found.items()
    )


def _results(body: Any, known: dict[Any, Any]) -> tuple[Any, ...]:
    while isinstance(known.get(body), (relax.Var, relax.Tuple)):
        body = known[body]
    return tuple(body.fields) if isinstance(body, relax.Tuple) else (body,)


def _variables(exprs: Iterable[Any]) -> Iterator[Any]:
    """What expressions read, but for dimensions: those come with the tensors that have them."""
    for expr in exprs:
        for leaf in operands(expr):
            if isinstance(leaf, relax.Var) and not isinstance(leaf.ty, tvm.ir.PrimType):
                yield leaf


class _Writer:
    """Writes segments into a module that holds the functions which `main` calls."""

    def __init__(self, module: Any, known: dict[Any, Any]) -> None:
        self.main = module["main"]
        self.known = known
        kept = {v: f for v, f in module.functions.items() if v.name_hint != "main"}
        self.module = tvm.IRModule(kept, attrs=module.attrs)

    def segment(self, index: int, part: list[Any], gives: list[Any]) -> Segment:
        if not gives:
            return Segment("", (), (), ())
        inside = {b.var for b in part}
        read = [v for v in dict.fromkeys(_variables(b.value for b in part)) if v not in inside]
        weights = [v for v in read if ops.is_call_to(self.known.get(v), ops.WEIGHT)]
        takes = list(dict.fromkeys([*self.main.params, *[v for v in read if v not in weights]]))
        name = f"segment_{index}"
        function = self._function(name, takes, weights, part, gives)
        missing = list(relax.analysis.free_symbolic_vars(function))
        if missing:  # dimensions that a match_cast of an earlier segment has named
            takes += [self._source(dim) for dim in missing]
            function = self._function(name, takes, weights, part, gives)
        self.module[name] = relax.utils.copy_with_new_vars(function)
        named = tuple(str(self.known[v].attrs["name"]) for v in weights)
        return Segment(name, tuple(takes), named, tuple(gives))

    def _function(
        self, name: str, takes: list[Any], weights: list[Any], part: list[Any], gives: list[Any]
    ) -> Any:
        new = {v: relax.Var(f"a{i}", v.ty) for i, v in enumerate([*takes, *weights])}
        builder = relax.BlockBuilder()
        with builder.function(name, list(new.values()), attrs={"global_symbol": name}):
            with builder.dataflow():
                for b in part:
                    value = substitute(b.value, new)
                    is_cast = isinstance(b, relax.MatchCast)
                    new[b.var] = builder.match_cast(value, b.ty) if is_cast else builder.emit(value)
                out = builder.emit_output(relax.Tuple([new[v] for v in gives]))
            builder.emit_func_output(out)
        return builder.get()[name]

    def _source(self, dim: Any) -> Any:
        """A value of `main` with this dimension."""
        for var in self.known:
            shape = getattr(var.ty, "shape", None)
            if shape is not None and any(dim.same_as(d) for d in shape.values):
                return var
        raise ModelError(
            f"the model cannot be calibrated: its dimension {dim} has no tensor that it could be "
            "read from; fix it with --input NAME:SHAPE"
        )
