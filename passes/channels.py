"""Where the channels of what a linear reads are made: constants with a number, or a row, for each.

    norm(s, gain[, offset])                 a gain and an offset
    dense(s, W, b)                          a row of W and a number of b
    relu(y), g * y                          those of y, for a factor only
    im2col(y)                               those of y, in each place of a window
    attention(q, k, y), reshapes, transposes of heads     those of y, shared by grouped heads

A factor that goes into these constants reaches the linear and nobody else: whatever lies between
is read by that linear's group alone. So does a rotation of neighbouring rows, where nothing but
reshapes and sums over keys lies between."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from lbcompiler.ir import ops
from lbcompiler.ir.constants import is_constant
from lbcompiler.ir.permute import PERMUTE, RESHAPE, axes_of
from lbcompiler.ir.rewrite import bindings, operands
from lbcompiler.ir.smoothing import Folding, Indices

LAYER_NORM, RMS_NORM, RELU = (
    tvm.ir.Op.get(f"relax.nn.{name}") for name in ("layer_norm", "rms_norm", "relu")
)
MULTIPLY = tvm.ir.Op.get("relax.multiply")


@dataclass(frozen=True)
class Source:
    """Channel j of x is made by number (or row) rows[j] of the constants of the norm or the dense
    that `variable` is bound to. shifts: an offset reaches x as well. mixes: so does a rotation of
    blocks of rows, aligned ones whose size divides it; 1 for none.
    """

    variable: Any
    rows: Indices
    shifts: bool
    mixes: int


class NoSourceError(Exception):
    """Why the channels of an x have no source."""


class Channels:
    """Of the values of a module's `main`."""

    def __init__(self, module: Any) -> None:
        main = module["main"]
        self.bound = {binding.var: binding.value for binding in bindings(main)}
        self.uses: Counter[Any] = Counter()
        for value in [*self.bound.values(), main.body.body]:
            self.uses.update(leaf for leaf in operands(value) if isinstance(leaf, relax.Var))
        self.groups: dict[Any, tuple[str, ...]] = {}  # x -> the linears that read it
        for value in self.bound.values():
            if ops.is_call_to(value, ops.DENSE) and self._is_weight(value.args[1]):
                x = value.args[0]
                self.groups[x] = (*self.groups.get(x, ()), str(value.attrs["layer"]))

    def source(self, x: Any) -> Source:
        """Raises NoSourceError."""
        if self.uses[x] != len(self.groups[x]):
            raise NoSourceError("its input is read by others than linears")
        return self._source(x, np.arange(_last(x)), True, _last(x))

    def foldings(self) -> dict[str, Folding]:
        """By layer, of every linear with a constant weight."""
        found: dict[str, Folding] = {}
        for x, layers in self.groups.items():
            try:
                source = self.source(x)
                folding = Folding(layers, source.rows, source.shifts)
            except NoSourceError as refusal:
                folding = Folding(layers, reason=str(refusal))
            found.update(dict.fromkeys(layers, folding))
        return found

    def _source(self, var: Any, rows: Indices, shifts: bool, mixes: int) -> Source:
        call = self.bound.get(var)
        if not isinstance(call, relax.Call):
            raise NoSourceError("its input is an input of the model")
        if call.op in (LAYER_NORM, RMS_NORM):
            return self._of_norm(var, call, rows, shifts)
        if call.op == ops.DENSE and self.is_dense(call):
            return Source(var, rows, shifts, mixes)
        if call.op == RELU:
            return self._source(self.alone(call.args[0]), rows, False, 1)
        if call.op == MULTIPLY:
            return self._of_product(call, rows)
        if call.op == ops.IM2COL:
            pixels = self.alone(call.args[0])
            return self._source(pixels, rows % _last(pixels), False, 1)
        if call.op == RESHAPE and _last(call.args[0]) == len(rows) == _last(call):
            return self._source(self.alone(call.args[0]), rows, shifts, mixes)
        attention = self.bound.get(call.args[0]) if call.op == RESHAPE else None
        if attention is not None and ops.is_call_to(attention, ops.ATTENTION):
            return self._of_attention(call, attention, rows, shifts, mixes)
        raise NoSourceError(
            f"its input is computed by {call.op.name}, which has no constant a channel"
        )

    def alone(self, var: Any) -> Any:
        if not isinstance(var, relax.Var) or self.uses[var] != 1:
            raise NoSourceError("what its input is computed from is read by others too")
        return var

    def _of_norm(self, var: Any, call: Any, rows: Indices, shifts: bool) -> Source:
        x, *gains = call.args
        is_whole = call.op == RMS_NORM or (call.attrs.center and call.attrs.scale)
        along_rows = [int(axis) for axis in call.attrs.axes] in ([-1], [len(x.ty.shape.values) - 1])
        if not (is_whole and along_rows and all(map(self._is_known, gains))):
            raise NoSourceError("its input is a norm without constant gains along the last axis")
        return Source(var, rows, shifts and call.op == LAYER_NORM, 1)

    def _of_product(self, call: Any, rows: Indices) -> Source:
        """A factor goes into one side, the first where it can."""
        width, reason = len(rows), ""
        for factor in reversed(call.args):
            try:
                if _last(factor) == width:
                    return self._source(self.alone(factor), rows, False, 1)
            except NoSourceError as refusal:
                reason = str(refusal)
        raise NoSourceError(reason or "its input is a product with what has not a number a channel")

    def _of_attention(
        self, merged: Any, call: Any, rows: Indices, shifts: bool, mixes: int
    ) -> Source:
        """Values are averaged with weights that sum to 1, unless a mask bars all of them."""
        self.alone(merged.args[0])
        v, layout = call.args[2], str(call.attrs["layouts"][2])
        heads, key_heads = int(call.attrs["heads"]), int(call.attrs["key_heads"])
        depth, first = _last(v), int(call.attrs["first_heads"][2])
        if _last(merged) != heads * depth or len(layout) != 4:
            raise NoSourceError("its input is no attention of whole heads")
        self._alone_in_attention(v, call, first, key_heads)
        head, number = np.divmod(np.arange(heads * depth), depth)
        places = (first + head // (heads // key_heads)) * depth + number
        split = self._split_heads(v, layout, depth)
        sees = shifts and _sees_keys(call)
        return self._source(self.alone(split), places[rows], sees, math.gcd(mixes, depth))

    def _alone_in_attention(self, v: Any, call: Any, first: int, key_heads: int) -> None:
        """Others may read other heads of a stack that v lies in, if they are this attention."""
        readers = [i for i, operand in enumerate(call.args[:3]) if operand.same_as(v)]
        counts = (int(call.attrs["heads"]), key_heads, key_heads)
        firsts = [int(f) for f in call.attrs["first_heads"]]
        apart = all(
            firsts[i] + counts[i] <= first or first + key_heads <= firsts[i] for i in readers[:-1]
        )
        if self.uses[v] != len(readers) or not apart:
            raise NoSourceError("the values of its attention are read by others too")

    def _split_heads(self, v: Any, layout: str, depth: int) -> Any:
        """The (.., H * D) that v's heads were split from; its last axis runs over heads first."""
        call: Any = self.bound.get(v)
        if ops.is_call_to(call, PERMUTE):
            letters = dict(zip(axes_of(call), layout, strict=True))
            layout = "".join(letters[i] for i in range(4))
            call = self.bound.get(self.alone(call.args[0]))
        if not ops.is_call_to(call, RESHAPE) or not layout.endswith("HD"):
            raise NoSourceError("the values of its attention are no heads of one linear")
        *_, heads, _depth = call.ty.shape.values
        flat = call.args[0]
        if not isinstance(heads, tvm.tirx.IntImm) or _last(flat) != int(heads) * depth:
            raise NoSourceError("the values of its attention are no heads of one linear")
        return flat

    def is_dense(self, call: Any) -> bool:
        return self._is_weight(call.args[1]) and all(map(self._is_known, call.args[2:]))

    def _is_weight(self, expr: Any) -> bool:
        return ops.is_call_to(self.bound.get(expr), ops.WEIGHT)

    def _is_known(self, expr: Any) -> bool:
        value = self.bound.get(expr, expr) if isinstance(expr, relax.Var) else expr
        return bool(is_constant(value))


def _sees_keys(attention: Any) -> bool:
    """Whether every query provably sees a key."""
    lengths = [
        operand.ty.shape.values[str(layout).index("S")]
        for operand, layout in zip(attention.args[:2], attention.attrs["layouts"], strict=False)
    ]
    is_square = bool(ops.ANALYZER.can_prove_equal(*lengths))
    return len(attention.args) == 3 and (is_square or not bool(attention.attrs["causal"]))


def _last(expr: Any) -> int:
    """The extent of the last axis, 0 where it is not known."""
    extents = expr.ty.shape.values
    last = extents[-1] if len(extents) else 0
    return int(last) if isinstance(last, (int, tvm.tirx.IntImm)) else 0
