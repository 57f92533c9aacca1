"""take(table, ids)       ->  take(table R, ids)
add(s, dense(y, v, c))  ->  add(s, dense(y, R^T v, c R))      s the residual stream
dense(norm(s, g), w)    ->  dense(norm(s, 1), (w g) R)

for one orthonormal R: what the stream holds is rotated, and everybody who writes or reads it knows.
An RMS norm takes its scale from the length of a row, which no rotation changes, so only its gain
has to leave it. Nothing is computed on the way: the rotation is folded into weights for good.

After QuaRot (arXiv 2404.00456, section 4) and SliceGPT (arXiv 2401.15024, section 3), which found
that a network of RMS norms computes the same under it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from lbcompiler.errors import ConfigError
from lbcompiler.ir import ops
from lbcompiler.ir.constants import Constant, mapped
from lbcompiler.ir.model import Array, Model, Weight
from lbcompiler.ir.rewrite import Scope, operands, rewrite
from lbcompiler.ir.rotation import Rotation
from lbcompiler.passes.channels import RMS_NORM, Channels

ADD, TAKE = (tvm.ir.Op.get(f"relax.{name}") for name in ("add", "take"))


@dataclass(frozen=True)
class RotateResidual:
    rotation: Rotation
    name: ClassVar[str] = "rotate_residual"

    def __call__(self, model: Model) -> Model:
        stream, rotation = stream_of(model.module), self.rotation
        if not rotation.divides(stream.width):
            raise ConfigError(
                f"the residual stream has {stream.width} channels, which are no whole blocks of a "
                f"rotation of {rotation.size}: choose a power of two that divides it"
            )
        weights, layers = dict(model.weights), dict(model.layers)

        def visit(call: Any, scope: Scope) -> Any:
            var = scope.variable
            if var in stream.tables:
                table = mapped(call.args[0], rotation.name, rotation.apply, scope, weights)
                return relax.op.take(table, call.args[1], call.attrs.axis, call.attrs.mode)
            if var in stream.norms:
                ones = mapped(call.args[1], "ones", np.ones_like, scope, weights)
                return relax.op.nn.rms_norm(call.args[0], ones, call.attrs.axes, call.attrs.epsilon)
            is_writer, norm = var in stream.writers, stream.readers.get(var)
            if not is_writer and norm is None:
                return None
            x, w, *bias = call.args
            gain = None if norm is None else _numbers(stream.norms[norm], weights)

            def turned(weight: Array) -> Array:
                if gain is not None:
                    weight = rotation.apply(weight * gain())
                return rotation.apply(weight.T).T if is_writer else weight

            if is_writer:
                bias = [mapped(b, rotation.name, rotation.apply, scope, weights) for b in bias]
                name = str(call.attrs["layer"])
                layers[name] = layers[name].without_output("rotated with the residual stream")
            held = mapped(w, f"residual_{rotation.name}", turned, scope, weights)
            return ops.dense(x, held, *bias, layer=str(call.attrs["layer"]))

        module = rewrite(model.module, visit)
        return replace(model, module=module, weights=weights, layers=layers)


class NoStreamError(Exception):
    """Why a model has no residual stream that could be rotated."""


class Stream:
    """Who writes a residual stream and who reads it, by variables of a module's `main`.

    tables: embeddings; writers: linears whose sum it is; norms: RMS norms of it, with their gains;
    readers: the linears that read such a norm, and which. Raises NoStreamError where somebody else
    does.
    """

    def __init__(self, norm: Any, channels: Channels) -> None:
        self.tables: set[Any] = set()
        self.writers: set[Any] = set()
        self.norms: dict[Any, Any] = {}
        self.readers: dict[Any, Any] = {}
        self._channels = channels
        self._reading: dict[Any, list[Any]] = defaultdict(list)
        for var, value in channels.bound.items():
            if isinstance(value, relax.Call):
                for leaf in operands(value):
                    self._reading[leaf].append(var)
        first = channels.bound[norm].args[0]
        self.width = int(first.ty.shape.values[-1])
        known, waiting = {first}, [first]
        while waiting:
            found = [v for v in self._around(waiting.pop()) if v not in known]
            waiting += found
            known.update(found)

    def layers(self) -> dict[str, Any]:
        """The linears that are changed, by name: the gain of the norm that each reads, or None."""
        bound = self._channels.bound
        return {
            str(bound[var].attrs["layer"]): self.norms[self.readers[var]]
            if var in self.readers
            else None
            for var in [*self.readers, *self.writers]
        }

    def _around(self, var: Any) -> list[Any]:
        """The values of the stream that this one is computed from or into."""
        call = self._channels.bound.get(var)
        found = []
        if not isinstance(call, relax.Call):
            raise NoStreamError("it begins with an input of the model")
        if call.op == ADD:
            found += self._sum(call)
        elif call.op == ops.DENSE and self._channels.is_dense(call):
            self.writers.add(var)
        elif call.op == TAKE and self._is_table(call):
            self.tables.add(var)
        else:
            raise NoStreamError(f"{call.op.name} writes it")
        readers = self._reading[var]
        if len(readers) != self._channels.uses[var]:
            raise NoStreamError("the model returns it")
        for reader in readers:
            value = self._channels.bound[reader]
            if value.op == ADD:
                found += [reader, *self._sum(value)]
            elif value.op == RMS_NORM and value.args[0].same_as(var):
                self._add_norm(reader, value)
            else:
                raise NoStreamError(f"{value.op.name} reads it")
        return found

    def _sum(self, call: Any) -> list[Any]:
        for operand in call.args:
            is_value = isinstance(operand, relax.Var)
            if (
                not is_value
                or list(operand.ty.shape.values)[-1:] != list(call.ty.shape.values)[-1:]
            ):
                raise NoStreamError("something else than linears is added to it")
        return list(call.args)

    def _is_table(self, call: Any) -> bool:
        table = self._channels.bound.get(call.args[0])
        return ops.is_call_to(table, ops.WEIGHT) and int(call.attrs.axis) == 0

    def _add_norm(self, norm: Any, call: Any) -> None:
        axes, last = [int(axis) for axis in call.attrs.axes], len(call.ty.shape.values) - 1
        gain = self._channels.bound.get(call.args[1], call.args[1])
        is_known = isinstance(gain, Constant) or ops.is_call_to(gain, ops.WEIGHT)
        if axes not in ([-1], [last]) or not is_known:
            raise NoStreamError("a norm of it is along other axes, or its gain is computed")
        readers = self._reading[norm]
        bound = self._channels.bound
        denses = [
            r
            for r in readers
            if ops.is_call_to(bound[r], ops.DENSE)
            and bound[r].args[0].same_as(norm)
            and self._channels.is_dense(bound[r])
        ]
        if len(denses) != self._channels.uses[norm]:
            raise NoStreamError("a norm of it is read by others than linears")
        self.norms[norm] = gain
        self.readers.update(dict.fromkeys(denses, norm))


def stream_of(module: Any) -> Stream:
    """The residual stream of a model. Raises ConfigError where there is none to rotate."""
    channels, reason = Channels(module), "it has no RMS norm"
    for var, value in channels.bound.items():
        if isinstance(value, relax.Call) and value.op == RMS_NORM:
            try:
                return Stream(var, channels)
            except NoStreamError as refusal:
                reason = str(refusal)
    raise ConfigError(f"the residual stream of the model cannot be rotated: {reason}")


def _numbers(gain: Any, weights: dict[str, Weight]) -> Callable[[], Array]:
    if isinstance(gain, Constant):
        held = gain.value.numpy()
        return lambda: np.asarray(held)
    return weights[str(gain.attrs["name"])].load
