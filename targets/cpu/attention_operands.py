"""What an attention kernel reads and writes: its arguments, addressed by batch, position and head.

q, k and v may have batch, positions and heads in any order, and may be some of the heads of a
larger tensor (q, k and v of one linear): the transposes and slices that models have around an
attention then cost nothing.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.intrinsics import Expr


@dataclass(frozen=True)
class Heads:
    """`count` heads of a tensor that has `total`, from `first` on; its axes in the order of
    `layout`: batch, position (S) and head, and the numbers of a head (D) last.
    """

    count: int
    layout: str = "BSHD"
    first: int = 0
    total: int = 0  # 0: as many as `count`

    def shape(self, batch: Expr, length: Expr, depth: int) -> tuple[Expr, ...]:
        """Of the whole tensor."""
        return (*self._ordered(batch, length, self.total or self.count), depth)

    def row(self, batch: Expr, position: Expr, head: Expr) -> tuple[Expr, ...]:
        """The index of a head's numbers at a position, all but the last axis."""
        return self._ordered(batch, position, head + self.first if self.first else head)

    def _ordered(self, batch: Expr, position: Expr, head: Expr) -> tuple[Expr, ...]:
        axes = {"B": batch, "S": position, "H": head}
        return tuple(axes[axis] for axis in self.layout[:-1])


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T * scale + mask) v; batch and lengths are symbolic.

    `mask` names those of the axes B, H, Q, K that the mask has; the others have the extent 1. Of a
    causal attention the last query sees all keys, the one before all but one, and so on. `few` says
    whether there are but a few queries (`attention_few`); None: that is seen when it runs.
    """

    q: Heads
    k: Heads
    v: Heads
    depth: int
    value_depth: int
    scale: float
    causal: bool = False
    mask: str | None = None
    few: bool | None = False

    @property
    def group(self) -> int:
        """Heads of q that share one of k and v."""
        return self.q.count // self.k.count

    @property
    def name(self) -> str:
        """For symbols."""
        parts = [self.q.count, self.k.count, self.depth, self.value_depth]
        flags = ["causal"] * self.causal + ([] if self.mask is None else [f"mask{self.mask}"])
        return "_".join(["attention", *map(str, parts), *flags])


@dataclass(frozen=True)
class Operands:
    """The buffers and extents of one kernel."""

    what: Attention
    batch: Expr
    queries: Expr
    keys: Expr
    q: Any
    k: Any
    v: Any
    mask: Any
    out: Any

    def mask_row(self, batch: Expr, head: Expr, query: Expr) -> tuple[Expr, ...]:
        """The index of a query's mask, all but the last axis."""
        axes = zip("BHQ", (batch, head, query), strict=True)
        return tuple(index if axis in (self.what.mask or "") else 0 for axis, index in axes)

    def last_key(self, query: Expr) -> Expr:
        """The last key that a query sees."""
        return query + (self.keys - self.queries)


def declare(what: Attention) -> Operands:
    """The arguments of a PrimFunc, in order: q, k, v[, mask], out."""
    batch, queries, keys = (tirx.Var(name, "int64") for name in ("batch", "queries", "keys"))
    q = T.arg("q", T.buffer(what.q.shape(batch, queries, what.depth), "float32"))
    k = T.arg("k", T.buffer(what.k.shape(batch, keys, what.depth), "float32"))
    v = T.arg("v", T.buffer(what.v.shape(batch, keys, what.value_depth), "float32"))
    mask = None
    if what.mask is not None:
        extents = {"B": batch, "H": what.q.count, "Q": queries, "K": keys}
        shape = [extent if axis in what.mask else 1 for axis, extent in extents.items()]
        mask = T.arg("mask", T.buffer(shape, "float32"))
    out = T.arg("out", T.buffer((batch, queries, what.q.count, what.value_depth), "float32"))
    return Operands(what, batch, queries, keys, q, k, v, mask, out)
