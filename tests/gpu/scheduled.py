"""Kernels that bring no threads and get them by rule: the linear of float weights, rows written
behind a state, attention of heads that are too long for the fused kernel.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx, topi

from lbcompiler.targets.cuda.append import append_kernel
from lbcompiler.targets.cuda.attention import scores, values
from lbcompiler.targets.cuda.linear_float import FloatLinear
from lbcompiler.targets.cuda.schedule import schedule_function
from tests.gpu.attention import BOUND
from tests.gpu.built import Loaded
from tests.gpu.check import Array, Arrays, Figures, OfArch
from tests.gpu.kernels import every_bit, within
from tests.targets.cuda.attention_cases import described, expected, inputs, output

ROUNDING = 2.0**-24  # of float32, to nearest: no tensor core adds anything up here
LONG = (1, 5, 150, 2, 1, 160, 136, True, None)  # as `attention_cases.CASES`


@dataclass(frozen=True)
class FloatProduct(OfArch):
    """`rows`: the M's."""

    arch_name: str
    rows: tuple[int, ...]
    n: int
    k: int

    @property
    def name(self) -> str:
        return f"linear {FloatLinear(self.arch).name} N={self.n} K={self.k}"

    def functions(self) -> dict[str, Any]:
        linear = FloatLinear(self.arch).gemm(self.n, self.k, bias=True)
        return {"linear": schedule_function(linear, self.arch.schedule_target)}

    def outputs(self, kernels: Loaded) -> Arrays:
        empty = {m: np.full((m, self.n), np.nan, np.float32) for m in self.rows}
        return {
            str(m): kernels("linear", [self._x(m), *self._weights()], [y])[0]
            for m, y in empty.items()
        }

    def judge(self, outputs: Arrays) -> Figures:
        w, bias = (array.astype(np.float64) for array in self._weights())
        shares = []
        for m in self.rows:
            x = self._x(m).astype(np.float64)
            most = np.abs(x) @ np.abs(w).T + np.abs(bias)  # of any sum on the way
            bound = (self.k + 2) * ROUNDING * most
            shares.append(within(np.abs(outputs[str(m)] - (x @ w.T + bias)), bound, f"M={m}"))
        return {"share_of_bound": max(shares)}

    def _x(self, m: int) -> Array:
        return np.random.default_rng(m).standard_normal((m, self.k), np.float32)

    def _weights(self) -> tuple[Array, Array]:
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.n, self.k), np.float32), rng.standard_normal(
            self.n, np.float32
        )


@dataclass(frozen=True)
class Append(OfArch):
    """As a cache of keys grows, by `count` rows behind `past` of them."""

    arch_name: str
    past: int
    count: int
    inner: tuple[int, int, int] = (2, 3, 40)  # batch, heads, numbers of a head

    @property
    def name(self) -> str:
        return f"append {self.count} rows to {self.past} {self.arch_name}"

    def functions(self) -> dict[str, Any]:
        batch, heads, depth = self.inner
        count = tirx.Var("n", "int64")
        kernel = append_kernel([batch, heads, count, depth], [2, 0, 1, 3], "float32")
        return {"append": schedule_function(kernel, self.arch.schedule_target)}

    def outputs(self, kernels: Loaded) -> Arrays:
        state, rows = kernels("append", [], [self._state(), self._rows()])
        return {"state": state, "rows": rows}

    def judge(self, outputs: Arrays) -> Figures:
        state, rows = self._state(), self._rows()
        state[self.past :] = rows.transpose(2, 0, 1, 3)
        return every_bit(outputs, {"state": state, "rows": rows})

    def _state(self) -> Array:
        size = (self.past + self.count, *self.inner)
        state = np.random.default_rng(0).standard_normal(size, np.float32)
        state[self.past :] = np.nan
        return state

    def _rows(self) -> Array:
        batch, heads, depth = self.inner
        shape = (batch, heads, self.count, depth)
        return np.random.default_rng(1).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class LongAttention(OfArch):
    """Three kernels, with scores and weights in memory between them."""

    arch_name: str

    @property
    def name(self) -> str:
        return f"attention {self.arch_name}, heads of {LONG[5]} numbers"

    def functions(self) -> dict[str, Any]:
        what, target = described(LONG), self.arch.schedule_target
        batch, queries, keys = (tirx.Var(name, "int64") for name in ("b", "q", "k"))
        _, _, _, heads, key_heads, depth, value_depth, *_ = LONG
        q = te.placeholder((batch, queries, heads, depth), "float32", "q")
        k = te.placeholder((batch, keys, key_heads, depth), "float32", "k")
        v = te.placeholder((batch, keys, key_heads, value_depth), "float32", "v")
        s = te.placeholder((batch, heads, queries, keys), "float32", "s")
        arguments = {
            "scores": [q, k, scores(what, q, k)],
            "softmax": [s, topi.nn.softmax(s)],
            "values": [s, v, values(what, s, v)],
        }
        return {
            name: schedule_function(
                te.create_prim_func(tensors, index_dtype_override="int64"), target
            )
            for name, tensors in arguments.items()
        }

    def outputs(self, kernels: Loaded) -> Arrays:
        q, k, v = inputs(LONG)
        batch, queries, keys, heads, *_ = LONG
        empty = np.full((batch, heads, queries, keys), np.nan, np.float32)
        (found,) = kernels("scores", [q, k], [empty])
        (weights,) = kernels("softmax", [found], [empty])
        return {"out": kernels("values", [weights, v], [output(LONG)])[0]}

    def judge(self, outputs: Arrays) -> Figures:
        error = np.abs(outputs["out"] - expected(LONG, *inputs(LONG)))
        bound = BOUND * LONG[5] / 128  # a score's sum is so much longer than those of CASES
        return {"share_of_bound": within(error, np.full_like(error, bound), "out")}
