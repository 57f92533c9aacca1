"""Attention of float32 heads in one kernel: no tensor of queries x keys is ever in memory.

    block (32 queries of one head of one sequence), 128 threads
        queries * scale -> shared memory
        for tile of keys (32, or 16 of long heads), up to the last one that a query sees
            keys, values -> shared memory                                         barrier
            scores: a thread has 2 queries x every eighth key                     [+ mask]
            largest so far of each query, over the 8 threads that share it        shuffles
            weights = exp(scores - largest) -> shared memory, of this warp alone
            values = values * exp(old largest - largest) + weights v: 2 queries x every eighth
                                                                                  barrier
        out = values / sum of the weights

Of up to 8 queries a block takes a part of the keys, and the heads that share them
(attention_parts.py).

Rows in shared memory are 4 floats longer than a head, so that neighbours read different banks. A
query whose every score is -inf gets NaN, as softmax has it.
"""

from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.targets.cpu.attention_operands import Attention, Operands, declare
from lbcompiler.targets.cuda.attention_parts import Parts
from lbcompiler.targets.cuda.intrinsics import (
    Device,
    Expr,
    Registers,
    barrier,
    int32,
    int64,
    kernel,
    launch,
    let,
    warp_barrier,
)

THREADS, ROWS, SHARING = 128, 32, 8  # of a block; its queries; threads that share two queries
PAIR = ROWS * SHARING // THREADS
LONGEST = 128  # numbers of a head: longer ones do not fit into 48 KiB
INFINITY = float("inf")


def fits(what: Attention) -> bool:
    return max(what.depth, what.value_depth) <= LONGEST


def attention_kernel(what: Attention) -> Any:
    """PrimFunc(q, k, v[, mask], out[, parts]), all float32; batch and lengths are symbolic. It has
    parts where there may be a few queries (attention_parts.py).
    """
    with kernel() as builder:
        operands = declare(what)
        if what.few is False:
            _emit_whole(what, operands)
        else:
            parts = Parts.declare(what, operands, _keys(what), ROWS)
            with T.If(parts.is_used):
                with T.Then():
                    grid = [parts.count, what.q.count // parts.heads, operands.batch]
                    with launch(grid, THREADS) as (place, thread):
                        _Block(what, operands, place, thread, parts).emit()
                    parts.emit_join()
                with T.Else():
                    _emit_whole(what, operands)
    return builder.get()


def _emit_whole(what: Attention, operands: Operands) -> None:
    blocks = (operands.queries + (ROWS - 1)) // ROWS
    with launch([blocks, what.q.count, operands.batch], THREADS) as (place, thread):
        _Block(what, operands, place, thread).emit()


def _keys(what: Attention) -> int:
    """Of a tile."""
    return 32 if max(what.depth, what.value_depth) <= 64 else 16


class _Block:
    """The code of a block of threads, which has 32 rows: queries of one head and all keys, or a few
    queries of the heads that share keys, and some of these.
    """

    def __init__(
        self,
        what: Attention,
        o: Operands,
        place: list[Expr],
        thread: Expr,
        parts: Parts | None = None,
    ) -> None:
        self.what, self.o, self.thread, self.parts = what, o, thread, parts
        self.keys = _keys(what)
        self.stride, self.value_stride = (_stride(d) for d in (what.depth, what.value_depth))
        self.heads = 1 if parts is None else parts.heads
        self.part, self.batch = place[0], int64(place[2])
        self.head = place[1] if parts is None else let(place[1] * self.heads)
        self.first = let(place[0] * ROWS) if parts is None else tirx.const(0, "int32")
        self.lane, self.pair = let(thread % SHARING), let(thread // SHARING * PAIR)
        self.queries = _shared(ROWS * self.stride)
        self.tile = _shared(self.keys * self.stride)
        self.value_tile = _shared(self.keys * self.value_stride)
        self.weights = _shared(ROWS * (self.keys + 4))
        self.columns = self.keys // SHARING  # of scores, a thread's
        self.numbers = -(-what.value_depth // SHARING)
        self.scores = Registers(PAIR * self.columns, "float32")
        self.values = Registers(PAIR * self.numbers, "float32")
        self.largest, self.sums, self.factors = (Registers(PAIR, "float32") for _ in range(3))
        self.seen = Registers(PAIR, "int32")

    def emit(self) -> None:
        what, o = self.what, self.o
        self.values.clear()
        self.sums.clear()
        for row in range(PAIR):
            self.largest[row] = _number(-INFINITY)
            self.seen[row] = self._keys_seen(row)
        first = int64(self.first)
        self._fill(self.queries, ROWS, self.stride, what.depth, self._query)
        seen: Expr = o.keys
        if what.causal:
            seen = tirx.min(o.keys, first + ROWS + (o.keys - o.queries))
        tiles = let(int32(tirx.max((seen + (self.keys - 1)) // self.keys, int64(0))))
        first_tile: Expr = tirx.const(0, "int32")
        if self.parts is not None:
            size = int32(self.parts.size)
            first_tile = let(int32(self.part) * size)
            tiles = let(tirx.min(tiles, first_tile + size))
        with T.serial(tiles - first_tile) as index:
            start = let((first_tile + index) * self.keys)
            self._fill(self.tile, self.keys, self.stride, what.depth, self._reader(o.k, start))
            values = self._reader(o.v, start)
            self._fill(self.value_tile, self.keys, self.value_stride, what.value_depth, values)
            barrier()
            self._score(start)
            self._weigh()
            warp_barrier()
            self._add(start)
            barrier()
        self._store()

    def _fill(self, to: Any, rows: int, stride: int, depth: int, value: Any) -> None:
        """(rows, depth) of shared memory, a number a thread at a time."""
        with T.serial(-(-rows * depth // THREADS)) as step:
            at = let(step * THREADS + self.thread)
            row, number = let(at // depth), let(at % depth)
            if rows * depth % THREADS:
                with T.If(at < rows * depth), T.Then():
                    T.buffer_store(to, value(row, number), [row * stride + number])
            else:
                T.buffer_store(to, value(row, number), [row * stride + number])

    def _row(self, row: Expr) -> tuple[Expr, Expr]:
        """(query, head) of a row, int64; a query that is not there is one behind the last."""
        query = int64(self.first) + int64(row // self.heads)
        return query, int64(self.head + row % self.heads)

    def _keys_seen(self, row: int) -> Expr:
        """How many keys a row sees, none where its query is not there; int32."""
        query, _ = self._row(self.pair + row)
        count = self.o.keys
        if self.what.causal:
            count = tirx.min(count, self.o.last_key(query) + 1)
        return int32(tirx.if_then_else(query < self.o.queries, count, int64(0)))

    def _query(self, row: Expr, number: Expr) -> Expr:
        at, head = self._row(row)
        place = (*self.what.q.row(self.batch, at, head), int64(number))
        scaled = self.o.q[place] * _number(self.what.scale)
        return tirx.if_then_else(at < self.o.queries, scaled, _number(0.0))

    def _reader(self, tensor: Any, start: Expr) -> Any:
        """Of k or v: zeros behind the last key, for a weight of zero times NaN would be NaN."""
        heads = self.what.k if tensor is self.o.k else self.what.v
        head = int64(self.head) // self.what.group

        def value(row: Expr, number: Expr) -> Expr:
            at = start + row
            place = (*heads.row(self.batch, int64(at), head), int64(number))
            return tirx.if_then_else(at < int32(self.o.keys), tensor[place], _number(0.0))

        return value

    def _score(self, start: Expr) -> None:
        self.scores.clear()
        unrolled = 4 if self.what.depth % 4 == 0 else 1
        with T.serial(self.what.depth // unrolled) as step:
            for part in range(unrolled):
                number = step * unrolled + part
                q = [let(self.queries[(self.pair + r) * self.stride + number]) for r in range(PAIR)]
                for column in range(self.columns):
                    key = let(self.tile[(self.lane + column * SHARING) * self.stride + number])
                    for row in range(PAIR):
                        slot = row * self.columns + column
                        self.scores[slot] = self.scores[slot] + q[row] * key
        for row in range(PAIR):
            query, head = map(let, self._row(self.pair + row))
            for column in range(self.columns):
                slot = row * self.columns + column
                key = let(start + self.lane + column * SHARING)
                score = self.scores[slot]
                if self.o.mask is not None:
                    score = score + self._mask(query, head, key)
                is_seen = key < self.seen[row]
                self.scores[slot] = tirx.if_then_else(is_seen, score, _number(-INFINITY))

    def _mask(self, query: Expr, head: Expr, key: Expr) -> Expr:
        place = self.o.mask_row(self.batch, head, query)
        last = int64(key) if "K" in (self.what.mask or "") else int64(0)
        return self.o.mask[(*(int64(i) for i in place), last)]

    def _weigh(self) -> None:
        for row in range(PAIR):
            slots = range(row * self.columns, (row + 1) * self.columns)
            largest: Expr = self.largest[row]
            for slot in slots:
                largest = let(tirx.max(largest, self.scores[slot]))
            for distance in (1, 2, 4):
                largest = let(tirx.max(largest, _from_lane(largest, distance)))
            # nothing is taken off while all scores are -inf: their weights are then 0
            taken = let(tirx.Select(largest == _number(-INFINITY), _number(0.0), largest))
            self.factors[row] = tirx.exp(self.largest[row] - taken)
            self.largest[row] = largest
            self.sums[row] = self.sums[row] * self.factors[row]
            for column, slot in enumerate(slots):
                weight = let(tirx.exp(self.scores[slot] - taken))
                self.sums[row] = self.sums[row] + weight
                at = (self.pair + row) * (self.keys + 4) + self.lane + column * SHARING
                T.buffer_store(self.weights, weight, [at])

    def _add(self, start: Expr) -> None:
        """Of the keys there are: a count that nvcc does not know keeps it from unrolling them all,
        which takes more registers than it allows itself on sm_120a.
        """
        count = let(tirx.min(int32(self.o.keys) - start, tirx.const(self.keys, "int32")))
        for row in range(PAIR):
            for number in range(self.numbers):
                slot = row * self.numbers + number
                self.values[slot] = self.values[slot] * self.factors[row]
        with T.serial(count) as key:
            weights = [
                let(self.weights[(self.pair + row) * (self.keys + 4) + key]) for row in range(PAIR)
            ]
            for number in range(self.numbers):
                at = key * self.value_stride + self.lane + number * SHARING
                value = let(self.value_tile[at])
                for row in range(PAIR):
                    slot = row * self.numbers + number
                    self.values[slot] = self.values[slot] + weights[row] * value

    def _store(self) -> None:
        for row in range(PAIR):
            total: Expr = self.sums[row]
            for distance in (1, 2, 4):
                total = let(total + _from_lane(total, distance))
            query, head = map(let, self._row(self.pair + row))
            with T.If(query < self.o.queries), T.Then():
                if self.parts is None:
                    place = [self.batch, query, head]
                    self._store_values(self.o.out, place, row, total)
                    continue
                place = self.parts.row(self.part, self.batch, head, query)
                self._store_values(self.parts.sums, place, row)
                with T.If(tirx.EQ(self.lane, 0)), T.Then():
                    for behind, value in enumerate((self.largest[row], total)):
                        last = int64(self.what.value_depth + behind)
                        T.buffer_store(self.parts.sums, value, [*place, last])

    def _store_values(self, to: Any, at: list[Expr], row: int, total: Expr | None = None) -> None:
        """A row's values, over their weights' sum where there is one."""
        for number in range(self.numbers):
            value = self.values[row * self.numbers + number]
            if total is not None:
                value = value / total
            last = let(int64(self.lane + number * SHARING))
            if (number + 1) * SHARING <= self.what.value_depth:
                T.buffer_store(to, value, [*at, last])
                continue
            with T.If(last < self.what.value_depth), T.Then():
                T.buffer_store(to, value, [*at, last])


def _stride(depth: int) -> int:
    """Of a row in shared memory: whole eights, and four more."""
    return -(-depth // SHARING) * SHARING + 4


def _shared(count: int) -> Any:
    return T.alloc_buffer((count,), "float32", scope="shared", align=16)


def _number(value: float) -> Expr:
    return tirx.const(value, "float32")


def _from_lane(x: Expr, distance: int) -> Expr:
    """The value of the lane whose number differs by that bit."""
    text = (
        "__device__ __forceinline__ float lb_exchange(float x, int mask) "
        "{ return __shfl_xor_sync(0xffffffffu, x, mask); }"
    )
    return Device("lb_exchange", text, "float32")(x, tirx.const(distance, "int32"))
