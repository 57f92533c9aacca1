"""Integer tensors that are a sum of their indices: folded, so that no mask arithmetic is left.

transformers finds packed sequences in position ids: it takes their differences, compares them with
1, sums up, and looks the sums up at a grid of positions. With the default positions 0, 1, 2, ...
all of this is known, whatever the length: what stays of it is column <= row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from lbcompiler.frontend.torch_build import Build, Expr
from lbcompiler.frontend.torch_shapes import Extent
from lbcompiler.frontend.torch_values import Constant, is_tensor


@dataclass(frozen=True, eq=False)
class Ramp:
    """The tensor offset + sum of steps[a] * (index along a), of a shape that may be symbolic.

    A truth value is a ramp without steps; along an axis of one element the step is 0.
    """

    shape: tuple[Extent, ...]
    dtype: str
    offset: int
    steps: tuple[int, ...]

    @property
    def is_flat(self) -> bool:
        return not any(self.steps)

    def expression(self, b: Build) -> Expr:
        """The tensor, made at run time from one counter an axis."""
        if self.is_flat:
            value = b.scalar(bool(self.offset) if self.dtype == "bool" else self.offset, self.dtype)
            return b.emit(relax.op.full(list(self.shape), value, self.dtype))
        result = None
        for axis, step in enumerate(self.steps):
            if step == 0:
                continue
            counter = b.iota(self.shape[axis])
            if step != 1:
                counter = b.emit(relax.op.multiply(counter, b.scalar(step, "int64")))
            ones = [1] * len(self.shape)
            ones[axis] = self.shape[axis]
            counter = b.reshape(counter, ones)
            result = counter if result is None else b.emit(relax.op.add(result, counter))
        if self.offset:
            result = b.emit(relax.op.add(result, b.scalar(self.offset, "int64")))
        return b.cast(b.broadcast(result, self.shape), self.dtype)


Rule = Callable[..., Any]


def fold(b: Build, name: str, arguments: Sequence[Any]) -> Any:
    """The node's value as a ramp, or as one of its operands; None where it is neither.

    Only integer and truth tensors are followed: `b.node` is the node, its values are `arguments`.
    """
    rule = RULES.get(name) or RULES.get(name.split(".")[0])
    if rule is None or b.out_dtype not in ("int64", "int32", "bool"):
        return None
    operands = [_as_ramp(argument) for argument in arguments]
    if name.split(".")[0] not in CREATED and not any(isinstance(o, Ramp) for o in _flat(operands)):
        return None
    return rule(b, *operands)


def _flat(values: Sequence[Any]) -> list[Any]:
    return [item for v in values for item in (v if isinstance(v, list) else [v])]


def _as_ramp(value: Any) -> Any:
    """A one-element integer constant as a ramp; everything else as it is."""
    if isinstance(value, list):
        return [_as_ramp(item) for item in value]
    if not isinstance(value, Constant) or value.dtype not in ("int64", "int32", "bool"):
        return value
    if any(extent != 1 for extent in value.shape):
        return value
    return Ramp(value.shape, value.dtype, int(value.array().item()), (0,) * len(value.shape))


def _made(b: Build, offset: int, steps: Sequence[int]) -> Ramp:
    """A ramp of the node's shape and dtype, whose steps are given from the last axis on."""
    shape = tuple(b.out_shape)
    full = (*[0] * (len(shape) - len(steps)), *steps)
    kept = tuple(0 if d == 1 else step for d, step in zip(shape, full, strict=True))
    return Ramp(shape, b.out_dtype, offset, kept)


def _numbered(value: Any) -> Ramp | None:
    """An operand as a ramp: a ramp, or a whole number."""
    if isinstance(value, Ramp):
        return value
    return Ramp((), "int64", int(value), ()) if isinstance(value, int) else None


def _sum(left: Ramp, right: Ramp, sign: int) -> tuple[int, list[int]]:
    rank = max(len(left.steps), len(right.steps))
    a = [0] * (rank - len(left.steps)) + list(left.steps)
    c = [0] * (rank - len(right.steps)) + list(right.steps)
    return left.offset + sign * right.offset, [p + sign * q for p, q in zip(a, c, strict=True)]


def arange(b: Build, *arguments: Any) -> Ramp | None:
    bounds: dict[str, Any] = {"start": 0, "step": 1}
    for parameter, value in zip(b.node.target._schema.arguments, arguments, strict=True):
        if parameter.name in bounds:
            bounds[parameter.name] = value
    if not all(isinstance(value, int) for value in bounds.values()):
        return None
    return _made(b, bounds["start"], [bounds["step"]])


def filled(value: int) -> Rule:
    return lambda b, *_: _made(b, value, [])


def full(b: Build, _: Any, value: Any, *__: Any) -> Ramp | None:
    return _made(b, int(value), []) if isinstance(value, int) else None


def added(sign: int) -> Rule:
    def rule(b: Build, x: Any, y: Any, alpha: Any = 1) -> Ramp | None:
        left, right = _numbered(x), _numbered(y)
        if left is None or right is None or alpha != 1 or b.out_dtype == "bool":
            return None
        return _made(b, *_sum(left, right, sign))

    return rule


def multiplied(b: Build, x: Any, y: Any) -> Ramp | None:
    left, right = _numbered(x), _numbered(y)
    if left is None or right is None or b.out_dtype == "bool":
        return None
    if not left.is_flat:
        left, right = right, left
    if not left.is_flat:
        return None
    return _made(b, left.offset * right.offset, [left.offset * step for step in right.steps])


def kept(b: Build, x: Any, *_: Any) -> Ramp | None:
    """A cast, copy or broadcast."""
    if b.out_dtype == "bool" and x.dtype != "bool":
        return _made(b, int(x.offset != 0), []) if x.is_flat else None
    return _made(b, x.offset, x.steps)


def reshaped(b: Build, x: Any, *_: Any) -> Ramp | None:
    """Axes of one element put in or taken out; a flat ramp takes any shape."""
    if x.is_flat:
        return _made(b, x.offset, [])
    long = [(d, step) for d, step in zip(x.shape, x.steps, strict=True) if d != 1]
    shape = b.out_shape
    after = [d for d in shape if d != 1]
    if len(after) != len(long) or not all(
        b.shapes.same(d, e) for (d, _), e in zip(long, after, strict=True)
    ):
        return None
    steps = iter(step for _, step in long)
    return _made(b, x.offset, [0 if d == 1 else next(steps) for d in shape])


def sliced(b: Build, x: Any, axis: int = 0, start: Any = None, _: Any = None, step: int = 1) -> Any:
    start = 0 if start is None else start
    if not isinstance(start, int) or start < 0:
        return None
    axis %= len(x.shape)
    steps = list(x.steps)
    offset = x.offset + start * steps[axis]
    steps[axis] *= step
    return _made(b, offset, steps)


def difference(
    b: Build, x: Any, count: int = 1, axis: int = -1, before: Any = None, after: Any = None
) -> Ramp | None:
    """The step, if what goes before continues the ramp."""
    if count != 1 or after is not None or not isinstance(x, Ramp) or x.dtype == "bool":
        return None
    axis %= len(x.shape)
    if before is not None:
        if not isinstance(before, Ramp) or before.shape[axis] != 1:
            return None
        others = [step for i, step in enumerate(x.steps) if i != axis]
        if [step for i, step in enumerate(before.steps) if i != axis] != others:
            return None
        if before.offset != x.offset - x.steps[axis]:
            return None
    return _made(b, x.steps[axis], [])


def summed_up(b: Build, x: Any, axis: int, *_: Any) -> Ramp | None:
    if not x.is_flat:
        return None
    steps = [0] * len(x.shape)
    steps[axis % len(steps)] = x.offset
    return _made(b, x.offset, steps)


def indexed(b: Build, x: Any, indices: Sequence[Any]) -> Ramp | None:
    """x[i, j, ...] with ramps that cannot be negative, one for each axis of x."""
    if not isinstance(x, Ramp):
        return None
    if x.is_flat:
        return _made(b, x.offset, [])
    if len(indices) != len(x.shape) or not all(_is_position(item) for item in indices):
        return None
    total = Ramp((), "int64", x.offset, ())
    for step, item in zip(x.steps, indices, strict=True):
        scaled = Ramp((), "int64", step * item.offset, tuple(step * s for s in item.steps))
        offset, steps = _sum(total, scaled, 1)
        total = Ramp((), "int64", offset, tuple(steps))
    return _made(b, total.offset, total.steps)


def _is_position(item: Any) -> bool:
    return isinstance(item, Ramp) and item.dtype != "bool" and min(item.offset, *item.steps, 0) >= 0


def compared(holds: Callable[[int], bool]) -> Rule:
    """A comparison that is the same everywhere."""

    def rule(b: Build, x: Any, y: Any) -> Ramp | None:
        left, right = _numbered(x), _numbered(y)
        if left is None or right is None:
            return None
        offset, steps = _sum(left, right, -1)
        return _made(b, int(holds(offset)), []) if not any(steps) else None

    return rule


def joined(neutral: int) -> Rule:
    """and, or: the neutral truth value leaves the other operand, the other one decides."""

    def rule(b: Build, x: Any, y: Any) -> Any:
        for known, other in ((x, y), (y, x)):
            if not isinstance(known, Ramp) or known.dtype != "bool":
                continue
            if known.offset != neutral:
                return _made(b, known.offset, [])
            if isinstance(other, Ramp) and other.dtype == "bool":
                return _made(b, other.offset, other.steps)
            if is_tensor(other) and b.dtype(other) == "bool":
                return b.broadcast(other, b.out_shape)
        return None

    return rule


def negated(b: Build, x: Any) -> Ramp | None:
    return _made(b, 1 - x.offset, []) if x.dtype == "bool" else None


CREATED = ("arange", "full", "ones", "zeros", "new_ones", "new_zeros", "ones_like", "zeros_like")
COPIES = ("to", "_to_copy", "alias", "clone", "contiguous", "detach", "expand", "lift_fresh_copy")
RESHAPES = ("reshape", "squeeze", "unsqueeze", "view", "_unsafe_view")

RULES: dict[str, Rule] = {
    **dict.fromkeys(COPIES, kept),
    **dict.fromkeys(RESHAPES, reshaped),
    **dict.fromkeys(("ones", "new_ones", "ones_like"), filled(1)),
    **dict.fromkeys(("zeros", "new_zeros", "zeros_like"), filled(0)),
    **dict.fromkeys(("__and__", "bitwise_and", "logical_and"), joined(1)),
    **dict.fromkeys(("__or__", "bitwise_or", "logical_or"), joined(0)),
    **dict.fromkeys(("logical_not", "bitwise_not"), negated),
    "add": added(1),
    "arange": arange,
    "cumsum": summed_up,
    "diff": difference,
    "eq": compared(lambda d: d == 0),
    "full": full,
    "ge": compared(lambda d: d >= 0),
    "gt": compared(lambda d: d > 0),
    "index": indexed,
    "le": compared(lambda d: d <= 0),
    "lt": compared(lambda d: d < 0),
    "mul": multiplied,
    "ne": compared(lambda d: d != 0),
    "slice": sliced,
    "sub": added(-1),
}
