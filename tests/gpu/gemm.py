"""A linear's quantization and GEMM, at row counts of every kernel and tails everywhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.arch import Arch, arch_named
from lbcompiler.targets.cuda.bench import exact_rows, rule_of
from lbcompiler.targets.cuda.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cuda.layout import DEPTH, depths
from tests.gpu.built import Loaded
from tests.gpu.check import Array, Arrays, Figures
from tests.gpu.kernels import every_bit, within
from tests.targets.cuda.reference import activation_operands, rows_of

TRUNCATION = 2.0**-23  # of a float32 in any rounding: to nearest it would be half
BEHIND_THE_SUM = 4  # the two tensor scales, the bias, the activation of `none`


@dataclass(frozen=True)
class Gemm:
    """`rows`: the M's. Whole numbers (`is_exact`), or normal ones."""

    weight: str
    act: str | None
    arch_name: str
    rows: tuple[int, ...]
    n: int
    k: int
    is_exact: bool = False

    @property
    def arch(self) -> Arch:
        return arch_named(self.arch_name)

    @property
    def kernel(self) -> LinearKernel:
        act = None if self.act is None else FORMATS[self.act]
        return kernel_for(FORMATS[self.weight], act, self.arch)

    @property
    def name(self) -> str:
        numbers = "whole numbers" if self.is_exact else "normal numbers"
        return f"gemm {self.kernel.name} N={self.n} K={self.k} {numbers}"

    def functions(self) -> dict[str, Any]:
        kernel = self.kernel
        return {
            "gemm": kernel.gemm(self.n, self.k, bias=True),
            "quantize": kernel.quantize(self.k, rule_of(kernel)),
        }

    def outputs(self, kernels: Loaded) -> Arrays:
        kernel, n, k = self.kernel, self.n, self.k
        _, w, bias = self._weights()
        packed, results = [np.asarray(part) for part in kernel.pack(w)], {}
        for m in self.rows:
            shapes = kernel.quantized_shapes(m, k)
            empty = [np.full(shape, 7).astype(dtype) for shape, dtype in shapes]
            operands = kernels("quantize", [self._x(m)], empty)
            scratch = kernel.scratch(n, kernel.default_config(n, k))
            y = np.full((m, n), np.nan, np.float32)
            written = [y, *(np.zeros(shape, dtype) for shape, dtype in scratch)]
            results[f"M={m}"] = kernels("gemm", [*operands, *packed, bias], written)[0]
        return results

    def judge(self, outputs: Arrays) -> Figures:
        values, _, bias = self._weights()
        shares = []
        for m in self.rows:
            x = self._values(m)
            wanted = x @ values.T + bias
            error = np.abs(outputs[f"M={m}"] - wanted)
            if self.is_exact:
                bound = self._behind_the_sum * TRUNCATION * np.abs(wanted)
            else:
                bound = self._bound(x, values, bias)
            shares.append(within(error, bound, f"M={m}"))
        if self.is_exact and not self._behind_the_sum:
            return {"agreement": "every bit"}
        return {"share_of_bound": max(shares)}

    @property
    def _behind_the_sum(self) -> int:
        """Roundings of a whole number's sum: where there are tensor scales they are no powers of
        two.
        """
        formats = (self.kernel.weight, self.kernel.act)
        has_scale = any(fmt is not None and fmt.has_tensor_scale for fmt in formats)
        return BEHIND_THE_SUM if has_scale else 0

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        if self.is_exact:
            return every_bit(ours, emulated)
        values, _, bias = self._weights()
        shares, equal = [], []
        for name, found in ours.items():
            x = self._values(len(found))
            error = np.abs(found.astype(np.float64) - emulated[name])
            shares.append(within(error, 2 * self._bound(x, values, bias), name))
            equal.append(float((found == emulated[name]).mean()))
        return {"share_of_bound": max(shares), "equal_bits": float(np.mean(equal))}

    def _bound(self, x: Array, values: Array, bias: Array) -> Array:
        """Products are exact. Each is added once in a tensor core, in any order, each addition or
        alignment losing at most a unit in the last place of what was summed; then the sums of warps
        and of parts of K, and what follows on them.
        """
        kernel = self.kernel
        config = kernel.default_config(self.n, self.k)
        parts = max(getattr(config, "splits", 1), getattr(config, "few_splits", 1))
        products = depths(self.k) * DEPTH * kernel.parts
        terms = products + config.few_warps + parts + BEHIND_THE_SUM
        return np.asarray(terms * TRUNCATION * (np.abs(x) @ np.abs(values).T + np.abs(bias)))

    def _x(self, m: int) -> Array:
        if self.is_exact:
            return exact_rows(m, self.k)
        return np.random.default_rng(m).standard_normal((m, self.k), np.float32)

    def _values(self, m: int) -> Array:
        """What the activations are once they are quantized, float64 (m, K)."""
        kernel, x = self.kernel, self._x(m)
        if kernel.act is None:
            return np.asarray(rows_of(activation_operands(kernel, x), self.k))
        q = kernel.act.quantize(x, rule_of(kernel), per_row=True)
        return np.asarray(kernel.act.dequantize(q).astype(np.float64))

    def _weights(self) -> tuple[Array, Any, Array]:
        """(values float64 (N, K), quantized, bias)."""
        rng, fmt = np.random.default_rng(0), self.kernel.weight
        if self.is_exact:
            w, bias = exact_rows(self.n, self.k)[::-1], np.zeros(self.n, np.float32)
        else:
            w = rng.standard_normal((self.n, self.k), np.float32)
            bias = rng.standard_normal(self.n, np.float32)
        q = fmt.quantize(w)
        return fmt.dequantize(q).astype(np.float64), q, bias
