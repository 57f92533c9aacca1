"""How a block of threads comes by the row that it quantizes: norm(activation(x) combine other).

    sweep 1   sum of a thread's four neighbours [-> memory: the sum], -> shared memory
              their sum or squares, of lanes, warps, block        norms
    sweep 2   squares of differences to the mean                  layer_norm
    last      normalized [-> memory: the row]; what follows is rotated and quantized

Each thread reads back what it wrote itself: the row in shared memory needs no barrier. Rows that do
not fit there are computed again in every sweep. Sums run in one order: lanes by shuffles, then the
warps one by one.
"""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T

from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.cuda.epilogue import activation
from lbcompiler.targets.cuda.intrinsics import (
    WARP,
    Device,
    Expr,
    Registers,
    barrier,
    bound,
    int64,
    let,
)
from lbcompiler.targets.cuda.rounding import DIFFERENCE, PRODUCT, SHUFFLE, SUM

EACH = 4  # neighbours of a lane
PIECE = WARP * EACH
HELD = 11 << 10  # numbers of a row in shared memory, of which a block has 48 KiB without asking


class PrologueRow:
    """One row of `size` places, the first k of them computed, zeros behind them."""

    def __init__(self, prologue: Prologue, m: Expr, k: int, size: int) -> None:
        """Declares the arguments: x[, other] f32 (m, k)[, gamma][, beta] f32 (k,)[, sum][, row] f32
        (m, k).
        """
        self.prologue, self.k, self.size = prologue, k, size
        has_norm, has_other = prologue.norm != "none", prologue.combine != "none"
        self.x = _argument("x", m, k)
        self.other = _argument("other", m, k) if has_other else None
        self.gamma = _argument("gamma", k) if has_norm else None
        self.beta = _argument("beta", k) if prologue.norm == "layer_norm" else None
        self.sum = _argument("sum", m, k) if prologue.keeps_sum else None
        self.kept = _argument("row", m, k) if prologue.keeps_row else None
        self.held: Any = None
        self.mean: Expr | None = None
        self.scale: Expr | None = None

    def begin(self, row: Expr, lane: Expr, warp: Expr, warps: int, *, is_read_twice: bool) -> None:
        """The sweeps before those that `load` is called in."""
        self.row, self.lane, self.warp, self.warps = row, lane, warp, warps
        is_computed = self.prologue.activation != "none" or self.prologue.combine != "none"
        if self.prologue.norm == "none":
            if is_computed and is_read_twice and self._hold():
                self.sweep(lambda start: self._keep(start, self._computed(start)))
            return
        self._hold()
        is_layer_norm = self.prologue.norm == "layer_norm"
        total = Registers(1, "float32")
        total.clear()

        def first(start: Expr) -> None:
            v = self._computed(start)
            self._keep(start, v)
            if self.sum is not None:
                self._store(self.sum, start, v)
            for i in range(EACH):
                term = v[i] if is_layer_norm else PRODUCT(v[i], v[i])
                total[0] = SUM(total[0], term)

        self.sweep(first)
        count = tirx.const(float(self.k), "float32")
        if is_layer_norm:
            self.mean = bound(self._of_block(total) / count, "float32")
            total.clear()

            def second(start: Expr) -> None:
                v = self._sum(start)

                def add(i: int) -> None:
                    apart = bound(DIFFERENCE(v[i], self.mean), "float32")
                    total[0] = SUM(total[0], PRODUCT(apart, apart))

                self._valid(start, add)

            self.sweep(second)
        variance = self._of_block(total) / count
        epsilon = tirx.const(self.prologue.epsilon, "float32")
        root = tirx.sqrt(SUM(variance, epsilon))
        self.scale = bound(tirx.const(1.0, "float32") / root, "float32")

    def load(self, start: Expr, *, is_last: bool) -> Registers:
        """Four neighbours of the row; the last time, the row is kept where that is asked."""
        v = self._sum(start)
        if self.scale is not None:
            v = self._normalized(start, v)
        if is_last and self.kept is not None:
            self._store(self.kept, start, v)
        return v

    def sweep(self, work: Callable[[Expr], None]) -> None:
        """`work` of the first of every four neighbours, each by one thread."""
        pieces = -(-self.size // PIECE)
        with T.serial(-(-pieces // self.warps)) as turn:
            piece = let(turn * self.warps + self.warp)
            with T.If(piece < pieces), T.Then():
                work(let(piece * PIECE + self.lane * EACH))

    def _hold(self) -> bool:
        """Room for the row in shared memory, if there is any."""
        if self.size <= HELD:
            places = -(-self.size // PIECE) * PIECE
            self.held = T.alloc_buffer((places,), "float32", scope="shared", align=16)
        return self.held is not None

    def _keep(self, start: Expr, v: Registers) -> None:
        if self.held is not None:
            _STORE.run(self.held.ptr_to([start]), v.pointer())

    def _sum(self, start: Expr) -> Registers:
        if self.held is None:
            return self._computed(start)
        v = Registers(EACH, "float32")
        _LOAD.run(v.pointer(), self.held.ptr_to([start]))
        return v

    def _computed(self, start: Expr) -> Registers:
        """activation(x) combine other, of four neighbours; zeros beyond k."""
        v = self._read(self.x, start, [self.row])
        name, combine = self.prologue.activation, self.prologue.combine
        other = None if self.other is None else self._read(self.other, start, [self.row])

        def one(i: int) -> None:
            if name != "none":
                v[i] = activation(name, v[i])
            if other is not None:
                v[i] = (SUM if combine == "add" else PRODUCT)(v[i], other[i])

        if name != "none" or other is not None:
            self._valid(start, one)
        return v

    def _normalized(self, start: Expr, v: Registers) -> Registers:
        gamma = self._read(self.gamma, start, [])
        beta = None if self.beta is None else self._read(self.beta, start, [])
        out = Registers(EACH, "float32")
        out.clear()

        def one(i: int) -> None:
            apart = v[i] if self.mean is None else DIFFERENCE(v[i], self.mean)
            scaled = PRODUCT(PRODUCT(apart, self.scale), gamma[i])
            out[i] = scaled if beta is None else SUM(scaled, beta[i])

        self._valid(start, one)
        return out

    def _read(self, buffer: Any, start: Expr, leading: list[Expr]) -> Registers:
        v = Registers(EACH, "float32")
        v.clear()
        if self.k % EACH == 0:
            with T.If(start < self.k), T.Then():
                _LOAD.run(v.pointer(), buffer.ptr_to([*leading, int64(start)]))
            return v

        def one(i: int) -> None:
            v[i] = buffer[(*leading, int64(start + i))]

        self._valid(start, one)
        return v

    def _store(self, buffer: Any, start: Expr, v: Registers) -> None:
        if self.k % EACH == 0:
            with T.If(start < self.k), T.Then():
                _STORE.run(buffer.ptr_to([self.row, int64(start)]), v.pointer())
            return

        def one(i: int) -> None:
            T.buffer_store(buffer, v[i], [self.row, int64(start + i)])

        self._valid(start, one)

    def _valid(self, start: Expr, one: Callable[[int], None]) -> None:
        """`one` of each of the four neighbours that is below k."""
        if self.k % EACH == 0:
            with T.If(start < self.k), T.Then():
                for i in range(EACH):
                    one(i)
            return
        for i in range(EACH):
            with T.If(start + i < self.k), T.Then():
                one(i)

    def _of_block(self, total: Registers) -> Expr:
        """The sum of all threads' totals, in each of them."""
        apart = 1
        while apart < WARP:
            total[0] = SUM(total[0], bound(SHUFFLE(total[0], apart), "float32"))
            apart *= 2
        shared = T.alloc_buffer((self.warps,), "float32", scope="shared")
        with T.If(tirx.EQ(self.lane, 0)), T.Then():
            T.buffer_store(shared, total[0], [self.warp])
        barrier()
        all_warps = Registers(1, "float32")
        all_warps.clear()
        for warp in range(self.warps):
            all_warps[0] = SUM(all_warps[0], shared[warp])
        return bound(all_warps[0], "float32")


def _argument(name: str, *shape: Any) -> Any:
    return T.arg(name, T.buffer(shape, "float32"))


_LOAD = Device(
    "lb_load_floats",
    "__device__ __forceinline__ void lb_load_floats(float* r, const void* p) { const float4 v = "
    "*reinterpret_cast<const float4*>(p); r[0] = v.x; r[1] = v.y; r[2] = v.z; r[3] = v.w; }",
)
_STORE = Device(
    "lb_store_floats",
    "__device__ __forceinline__ void lb_store_floats(void* p, const float* r) "
    "{ *reinterpret_cast<float4*>(p) = make_float4(r[0], r[1], r[2], r[3]); }",
)
