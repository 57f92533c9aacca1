"""Dimensions as arithmetic: an int where the size is known, else a TIR expression of the model's
dynamic dimensions.

Every size is kept in the simplest form that holds under the bounds of the dynamic dimensions,
because Relax decides by that form whether two shapes agree. A dimension without an upper bound
is taken to be below 2^31: sizes then multiply without overflow, and no more is assumed than that
the tensor exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from lbcompiler.errors import ConfigError
from lbcompiler.ir.model import Dim

Size = Any  # int | tirx expression of dtype int64
Sizes = NDArray[Any]  # an object array of sizes
UNBOUNDED = 2**31 - 1


class Undecided(Exception):  # noqa: N818 (an answer, not an error: "depends on the run")
    """Whether it holds is not decided by the shapes."""


def is_known(size: Size) -> bool:
    """Whether a size is a number now."""
    return isinstance(size, int | float | np.integer | np.floating | np.bool_)


def expression(size: Size) -> Any:
    """A size as TIR writes it."""
    return tirx.const(int(size), "int64") if is_known(size) else size


def all_known(sizes: Iterable[Size]) -> bool:
    return all(is_known(size) for size in sizes)


def object_array(values: Sequence[Size], shape: Sequence[int] | None = None) -> Sizes:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out if shape is None else out.reshape(shape)


def text(size: Size) -> str:
    """A size for people: `n * 2 + 1`, without TIR's dtypes."""
    return re.sub(r"T\.int64\((-?\d+)\)", r"\1", str(size)).replace("T.", "")


class Shapes:
    """The dynamic dimensions of one model and what can be proven about them."""

    def __init__(self) -> None:
        self._analyzer = tvm.sym.Analyzer()
        self._boundless = tvm.sym.Analyzer()
        self.dims: dict[str, Dim] = {}
        self.promised: dict[str, int] = {}  # upper bounds that the model itself implies
        self._variables: dict[str, Any] = {}

    def variable(self, dim: Dim) -> Size:
        """The dimension's variable: one a name. Bounds that pin it give the number itself."""
        if dim.name in self._variables:
            if self.dims[dim.name] != dim:
                raise ConfigError(
                    f"The dimension {dim.name!r} is bounded in two ways: {self.dims[dim.name]} and "
                    f"{dim}. Say the same bounds wherever its name stands, or give it another name."
                )
            return self._variables[dim.name]
        high = UNBOUNDED if dim.high is None else dim.high
        if not 0 <= dim.low <= high <= UNBOUNDED:
            raise ConfigError(
                f"The dimension {dim.name!r} has no possible size between {dim.low} and {high}: "
                "give bounds with 0 <= low <= high."
            )
        variable = tirx.Var(dim.name, "int64")
        self._analyzer.bind(variable, tvm.ir.Range(dim.low, high + 1))
        self.dims[dim.name] = dim
        self._variables[dim.name] = variable if dim.low < high else dim.low
        return self._variables[dim.name]

    def simple(self, size: Size) -> Size:
        """The size in its simplest form: an int if it is one number under the bounds."""
        if is_known(size):
            return int(size)
        size = self._analyzer.simplify(size)
        return int(size.value) if isinstance(size, tirx.IntImm) else size

    def equal(self, a: Size, b: Size) -> bool:
        """Whether the two are the same number at every run."""
        if is_known(a) and is_known(b):
            return int(a) == int(b)
        return is_known(difference := self.simple(expression(a) - expression(b))) and not difference

    def same_form(self, a: Size, b: Size) -> bool:
        """Whether Relax, which knows no bounds, sees that the two are equal."""
        return bool(self._boundless.can_prove_equal(expression(a), expression(b)))

    def proven(self, condition: Any) -> bool:
        """Whether a condition on sizes holds at every run."""
        if isinstance(condition, bool | np.bool_):
            return bool(condition)
        return bool(self._analyzer.can_prove(condition))

    def compare(self, op: Callable[[Any, Any], Any], a: Size, b: Size) -> bool:
        """`op` (of the module operator) decided for every run, else Undecided."""
        if is_known(a) and is_known(b):
            return bool(op(int(a), int(b)))
        difference = self.simple(expression(a) - expression(b))
        if is_known(difference):
            return bool(op(difference, 0))
        bound = self._analyzer.const_int_bound(difference)
        low, high = int(bound.min_value), int(bound.max_value)
        answers = {bool(op(low, 0)), bool(op(high, 0))} | (
            {bool(op(0, 0))} if low <= 0 <= high else set()
        )
        if len(answers) > 1:
            raise Undecided(f"{text(a)} against {text(b)}")
        return answers.pop()

    def least(self, a: Size, b: Size) -> Size:
        if is_known(a) and is_known(b):
            return min(int(a), int(b))
        return self.simple(tirx.min(expression(a), expression(b)))

    def most(self, a: Size, b: Size) -> Size:
        if is_known(a) and is_known(b):
            return max(int(a), int(b))
        return self.simple(tirx.max(expression(a), expression(b)))

    def floor_divide(self, a: Size, b: Size) -> Size:
        if is_known(a) and is_known(b):
            return int(a) // int(b)
        return self.simple(tirx.floordiv(expression(a), expression(b)))

    def ceil_divide(self, a: Size, b: Size) -> Size:
        return self.floor_divide(self.simple(a + b - 1), b)

    def truncate_divide(self, a: Size, b: Size) -> Size:
        """Division toward zero, as ONNX divides integers."""
        if is_known(a) and is_known(b):
            return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        if self.proven(expression(a) >= 0) and self.proven(expression(b) > 0):
            return self.floor_divide(a, b)
        return self.simple(tirx.truncdiv(expression(a), expression(b)))

    def modulo(self, a: Size, b: Size) -> Size:
        """The remainder with the sign of b."""
        if is_known(a) and is_known(b):
            return int(a) % int(b)
        return self.simple(tirx.floormod(expression(a), expression(b)))

    def product(self, sizes: Iterable[Size]) -> Size:
        total: Size = 1
        for size in sizes:
            total = total * size
        return self.simple(total)

    def quotient(self, whole: Sequence[Size], parts: Sequence[Size]) -> Size:
        """prod(whole) / prod(parts) where it divides: equal factors go first, or the analyzer is
        lost."""
        left = list(whole)
        rest: list[Size] = []
        for part in parts:
            twin = next((i for i, size in enumerate(left) if self.equal(size, part)), None)
            if twin is None:
                rest.append(part)
            else:
                left.pop(twin)
        return self.floor_divide(self.product(left), self.product(rest))

    def from_end(self, index: Size, extent: Size) -> Size:
        """A position that counts from the end if negative, as a position from the start."""
        if is_known(index):
            return int(index) if index >= 0 else self.simple(extent + int(index))
        try:
            return (
                self.simple(index + extent) if self.compare(lambda a, b: a < b, index, 0) else index
            )
        except Undecided:
            return self.simple(tirx.Select(index < 0, index + extent, index))

    def clamp(self, index: Size, low: Size, high: Size) -> Size:
        return self.most(low, self.least(index, high))

    def unify(self, sizes: Sequence[Size]) -> Size:
        """The simplest of sizes that the model says are equal.

        min(n, c) = n says that n is at most c, which is noted in `promised`."""
        for variable in filter(is_variable, sizes):
            for size in sizes:
                self._note_bound(variable, size)
        ordered = sorted(sizes, key=lambda size: (not is_known(size), len(str(size))))
        best = ordered[0]
        others = [size for size in ordered if mentions(size, best) and size is not best]
        return others[0] if is_variable(best) and others else best

    def _note_bound(self, variable: Any, size: Size) -> None:
        if not isinstance(size, tirx.Min):
            return
        sides = [size.a, size.b]
        limit = next((int(side.value) for side in sides if isinstance(side, tirx.IntImm)), None)
        if limit is not None and any(side.same_as(variable) for side in sides):
            name = str(variable.name)
            self.promised[name] = min(limit, self.promised.get(name, limit))


def is_variable(size: Size) -> bool:
    return isinstance(size, tirx.Var)


def mentions(size: Size, variable: Size) -> bool:
    """Whether a size is an expression of the variable (and not the variable itself)."""
    if is_known(size) or is_variable(size) or not is_variable(variable):
        return False
    return any(
        part.same_as(variable) for part in relax.analysis.tir_vars_in_type(relax.ShapeType([size]))
    )
