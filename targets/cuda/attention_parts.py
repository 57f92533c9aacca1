"""Attention of a few queries over many keys: these in parts, then a second launch that joins them
(flash-decoding, Dao et al., 2023, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).

    launch 1, part z of the keys
        m_z = largest score    s_z = sum of exp(score - m_z)    v_z = sum of exp(score - m_z) v
    launch 2, a block a query and head, a thread a number
        m = largest m_z        out = sum of exp(m_z - m) v_z / sum of exp(m_z - m) s_z

A block has the heads that share keys and values, up to 8 of them, so that it reads these once.
Parts are joined in their order: the same bits on each run. `parts` is a second result of the
kernel, so that the artifact's memory plan has a place for it.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.attention_operands import Attention, Operands
from lbcompiler.targets.cuda.intrinsics import Expr, Registers, bound, int32, int64, launch

FEW = 8  # queries, at most
MOST = 32  # parts
MOST_HEADS = 8  # of a block
INFINITY = float("inf")


def parts_shape(what: Attention, batch: Any) -> tuple[Any, ...]:
    """Of each part, query and head: the values, the largest score, the sum of weights."""
    return (batch * MOST, what.q.count, FEW, what.value_depth + 2)


@dataclass(frozen=True)
class Parts:
    """f32, as `parts_shape` says; `tiles` of keys there are, and `count` parts of them; a block has
    `heads`, and room for `rows` queries of them.
    """

    what: Attention
    o: Operands
    sums: Any
    tiles: Expr
    size: Expr  # tiles of a part
    count: Expr
    heads: int
    rows: int

    @classmethod
    def declare(cls, what: Attention, o: Operands, keys: int, rows: int) -> "Parts":
        """The argument behind `out`, for tiles of so many keys, and blocks of so many rows."""
        sums = T.arg("parts", T.buffer(parts_shape(what, o.batch), "float32"))
        tiles = (o.keys + (keys - 1)) // keys
        size = (tiles + (MOST - 1)) // MOST
        heads = max(n for n in range(1, MOST_HEADS + 1) if what.group % n == 0)
        count = (tiles + (size - 1)) // size
        return cls(what, o, sums, tiles, size, count, heads, min(FEW, rows // heads))

    @property
    def is_used(self) -> Expr:
        return tirx.And(self.o.queries <= self.rows, self.tiles > 1)

    def row(self, part: Expr, batch: Expr, head: Expr, query: Expr) -> list[Expr]:
        return [int64(part) * self.o.batch + int64(batch), int64(head), int64(query)]

    def emit_join(self) -> None:
        """The second launch."""
        depth = self.what.value_depth
        grid = [self.o.queries, self.what.q.count, self.o.batch]
        with launch(grid, depth) as ((query, head, batch), number):
            count = bound(int32(self.count), "int32")
            largest, total, value = (Registers(1, "float32") for _ in range(3))
            largest[0] = _number(-INFINITY)
            total.clear()
            value.clear()

            def held(part: Expr, place: int | Expr) -> Expr:
                return self.sums[(*self.row(part, batch, head, query), int64(place))]

            with T.serial(count) as part:
                largest[0] = tirx.max(largest[0], held(part, depth))
            # nothing is taken off while all scores are -inf: their weights are then 0
            is_empty = largest[0] == _number(-INFINITY)
            taken = bound(tirx.Select(is_empty, _number(0.0), largest[0]), "float32")
            with T.serial(count) as part:
                factor = bound(tirx.exp(held(part, depth) - taken), "float32")
                total[0] = total[0] + factor * held(part, depth + 1)
                value[0] = value[0] + factor * held(part, number)
            place = [int64(batch), int64(query), int64(head), int64(number)]
            T.buffer_store(self.o.out, value[0] / total[0], place)


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")
