"""A float model whose linears run in numpy, so that each may have other weights and inputs.

All else is the host's own compiled code, in float: what is learned of a layer's input is what the
artifact will meet, convolutions' windows and folded norms included, whatever file the model came
from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm

from lbcompiler.calibration.segments import Group, split
from lbcompiler.ir.constants import Constant
from lbcompiler.ir.model import Array, Model
from lbcompiler.pipeline import run
from lbcompiler.targets.cpu.build import build
from lbcompiler.targets.cpu.isa import detect
from lbcompiler.targets.cpu.lower_attention import LowerAttention
from lbcompiler.targets.cpu.threads import ensure_threads
from lbcompiler.tensors import as_tensor

Linears = Callable[[Group, Array], Mapping[str, Array]]  # (group, x (.., K)) -> layer: y (.., N)


@dataclass
class Run:
    """One batch on its way: the values that what follows reads, and how many groups are done."""

    values: dict[Any, Any] = field(default_factory=dict)
    done: int = 0

    def copy(self) -> "Run":
        return Run(dict(self.values), self.done)


class Simulator:
    """A prepared model (behind `passes.PREPARE`, its linears still `lbc.dense`)."""

    def __init__(self, model: Model) -> None:
        isa = detect()
        self.model = model
        self._split = split(run((LowerAttention(isa),), model).module)
        self.groups: tuple[Group, ...] = tuple(stage.group for stage in self._split.stages)
        ensure_threads()
        self._machine: Any = None
        if any(segment.function for segment in self._split.segments):  # no code is no executable
            built = build(self._split.module, isa.tvm_target(), model.dims)
            self._machine = built.load(tvm.cpu())
        self._linears = {
            linear.layer: linear for stage in self._split.stages for linear in stage.linears
        }
        self._weights: dict[str, Array] = {}
        self._tensors: dict[str, Any] = {}
        self._last = self._last_uses()

    def weight(self, layer: str) -> Array:
        """The float weight (N, K) of a layer, held from the first call on."""
        return self._held(self._linears[layer].weight)

    def bias(self, layer: str) -> Array | None:
        bias = self._linears[layer].bias
        if isinstance(bias, Constant):
            return np.asarray(bias.value.numpy())
        return None if bias is None else self._held(bias)

    def run(self, feeds: Mapping[str, Array], linears: Linears) -> dict[str, Array]:
        """The outputs by name, the linears of every group computed by `linears`."""
        return self.resume(self.start(feeds), linears)

    def start(self, feeds: Mapping[str, Array]) -> Run:
        """A run before its first group; `feeds` hold every input in its dtype and shape."""
        ports = zip(self._split.inputs, self.model.inputs, strict=True)
        return Run({var: as_tensor(np.asarray(feeds[port.name])) for var, port in ports})

    def resume(self, run: Run, linears: Linears) -> dict[str, Array]:
        """The outputs of a run that has come some way. A copy of it can go on from there again."""
        for index in range(run.done, len(self.groups)):
            x = self.reach(run)
            self.finish(run, linears(self.groups[index], x))
        self._compute(run, len(self.groups))
        named = zip(self.model.outputs, self._split.results, strict=True)
        return {port.name: np.from_dlpack(run.values[var]) for port, var in named}

    def reach(self, run: Run) -> Array:
        """Compute up to the next group: its x (.., K), not to be written to."""
        self._compute(run, run.done)
        x: Array = np.from_dlpack(run.values[self._split.stages[run.done].x])
        return x

    def finish(self, run: Run, results: Mapping[str, Array]) -> None:
        """Give the results of the group that was reached."""
        stage = self._split.stages[run.done]
        lead = run.values[stage.x].shape[:-1]
        for linear in stage.linears:
            y = np.ascontiguousarray(results[linear.layer], np.float32)
            run.values[linear.y] = as_tensor(y.reshape(*lead, y.shape[-1]))
        run.done += 1
        run.values = {v: t for v, t in run.values.items() if self._last.get(v, -1) >= run.done}

    def _compute(self, run: Run, index: int) -> None:
        segment = self._split.segments[index]
        if not segment.function:
            return
        given = [run.values[v] for v in segment.takes]
        weights = [self._tensor(name) for name in segment.weights]
        results = self._machine[segment.function](*given, *weights)
        run.values |= zip(segment.gives, results, strict=True)

    def _held(self, name: str) -> Array:
        if name not in self._weights:
            self._weights[name] = self.model.weights[name].load()
        return self._weights[name]

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            self._tensors[name] = as_tensor(self._held(name))
        return self._tensors[name]

    def _last_uses(self) -> dict[Any, int]:
        """Variable -> the last segment, or the stage before it, that reads it."""
        last: dict[Any, int] = {}
        for index, segment in enumerate(self._split.segments):
            last |= dict.fromkeys(segment.takes, index)
        for index, stage in enumerate(self._split.stages):
            last[stage.x] = max(last.get(stage.x, 0), index)
        return last | dict.fromkeys(self._split.results, len(self._split.segments))


def float_linears(simulator: Simulator) -> Linears:
    """The model's own."""

    def linears(group: Group, x: Array) -> dict[str, Array]:
        return {
            layer: dense(x, simulator.weight(layer), simulator.bias(layer))
            for layer in group.layers
        }

    return linears


def dense(x: Array, weight: Array, bias: Array | None) -> Array:
    """x (.., K) @ weight (N, K)^T [+ bias (N,)] -> (.., N) float32."""
    y: Array = x.reshape(-1, x.shape[-1]) @ weight.T
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], len(weight))
