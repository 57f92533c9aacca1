"""A linear's quantization and GEMM, at row counts of every kernel and tails everywhere.

Each is run on normal numbers, whose sums depend on the order of the additions, and on whole ones,
whose sums do not.
"""

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
from tests.targets.cuda.reference import activation_operands, products, rows_of

NORMAL, WHOLE = "normal", "whole"
TRUNCATION = 2.0**-23  # of a float32 in any rounding: to nearest it would be half
BEHIND_THE_SUM = 4  # the two tensor scales, the bias, the activation of `none`


@dataclass(frozen=True)
class Gemm:
    """`rows`: the M's."""

    weight: str
    act: str | None
    arch_name: str
    rows: tuple[int, ...]
    n: int
    k: int

    @property
    def arch(self) -> Arch:
        return arch_named(self.arch_name)

    @property
    def kernel(self) -> LinearKernel:
        act = None if self.act is None else FORMATS[self.act]
        return kernel_for(FORMATS[self.weight], act, self.arch)

    @property
    def name(self) -> str:
        return f"gemm {self.kernel.name} N={self.n} K={self.k}"

    def functions(self) -> dict[str, Any]:
        kernel = self.kernel
        return {
            "gemm": kernel.gemm(self.n, self.k, bias=True),
            "quantize": kernel.quantize(self.k, rule_of(kernel)),
        }

    def outputs(self, kernels: Loaded) -> Arrays:
        kernel, n, k = self.kernel, self.n, self.k
        scratch = kernel.scratch(n, kernel.default_config(n, k))
        results: Arrays = {}
        for numbers in (NORMAL, WHOLE):
            _, w, bias = self._weights(numbers)
            packed = [np.asarray(part) for part in kernel.pack(w)]
            for m in self.rows:
                shapes = kernel.quantized_shapes(m, k)
                empty = [np.full(shape, 7).astype(dtype) for shape, dtype in shapes]
                operands = kernels("quantize", [self._x(m, numbers)], empty)
                y = np.full((m, n), np.nan, np.float32)
                written = [y, *(np.zeros(shape, dtype) for shape, dtype in scratch)]
                found = kernels("gemm", [*operands, *packed, bias], written)
                results[f"{numbers} {m}"] = found[0]
        return results

    def judge(self, outputs: Arrays) -> Figures:
        shares: dict[str, list[float]] = {NORMAL: [], WHOLE: []}
        for name, y in outputs.items():
            numbers, m = name.split()
            if numbers == NORMAL:
                values, _, bias = self._weights(numbers)
                x = self._values(int(m))
                wanted = x @ values.T + bias
                bound = self._bound(x, values, bias)
            else:
                wanted = self._whole(int(m))
                bound = self._behind_the_sum * TRUNCATION * np.abs(wanted)
            shares[numbers].append(within(np.abs(y - wanted), bound, f"M={m}, {numbers} numbers"))
        whole = max(shares[WHOLE]) if self._behind_the_sum else "every bit"
        return {"share_of_bound": max(shares[NORMAL]), "whole_numbers": whole}

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        shares, equal = [], []
        for name, found in ours.items():
            numbers, m = name.split()
            if numbers == WHOLE:
                every_bit({name: found}, {name: emulated[name]})
                continue
            values, _, bias = self._weights(numbers)
            x = self._values(int(m))
            error = np.abs(found.astype(np.float64) - emulated[name])
            shares.append(within(error, 2 * self._bound(x, values, bias), f"M={m}"))
            equal.append(float((found == emulated[name]).mean()))
        share = float(np.mean(equal))
        return {
            "share_of_bound": max(shares),
            "equal_bits": share,
            "whole_numbers": "every bit",
        }

    def _bound(self, x: Array, values: Array, bias: Array) -> Array:
        """Products are exact. Each is added once in a tensor core, in any order, each addition or
        alignment losing at most a unit in the last place of what was summed; then the sums of warps
        and of parts of K, and what follows on them.
        """
        kernel = self.kernel
        config = kernel.default_config(self.n, self.k)
        parts = max(config.splits, config.few_splits)
        products = depths(self.k) * DEPTH * kernel.parts
        terms = products + config.few_warps + parts + BEHIND_THE_SUM
        return np.asarray(terms * TRUNCATION * (np.abs(x) @ np.abs(values).T + np.abs(bias)))

    @property
    def _behind_the_sum(self) -> int:
        """Roundings of a sum that is exact: tensor scales are no powers of two."""
        formats = (self.kernel.weight, self.kernel.act)
        has_scale = any(fmt is not None and fmt.has_tensor_scale for fmt in formats)
        return BEHIND_THE_SUM if has_scale else 0

    def _x(self, m: int, numbers: str) -> Array:
        if numbers == WHOLE:
            return exact_rows(m, self.k)
        return np.random.default_rng(m).standard_normal((m, self.k), np.float32)

    def _whole(self, m: int) -> Array:
        """The exact product of whole numbers: sums first, then the tensor scales."""
        kernel, x = self.kernel, self._x(m, WHOLE)
        _, w, _ = self._weights(WHOLE)
        right = products(w, kernel.weight).astype(np.float64)
        scale = np.float64(1 if w.tensor_scale is None else w.tensor_scale)
        if kernel.act is None:
            return np.asarray(x.astype(np.float64) @ right.T * scale)
        q = kernel.act.quantize(x, rule_of(kernel), per_row=True)
        rows = np.float64(1) if q.tensor_scale is None else q.tensor_scale.reshape(m, 1)
        sums = products(q, kernel.act).astype(np.float64) @ right.T
        return np.asarray(sums * rows * scale)

    def _values(self, m: int) -> Array:
        """What normal activations are once they are quantized, float64 (m, K)."""
        kernel, x = self.kernel, self._x(m, NORMAL)
        if kernel.act is None:
            return np.asarray(rows_of(activation_operands(kernel, x), self.k))
        q = kernel.act.quantize(x, rule_of(kernel), per_row=True)
        return np.asarray(kernel.act.dequantize(q).astype(np.float64))

    def _weights(self, numbers: str) -> tuple[Array, Any, Array]:
        """(values float64 (N, K), quantized, bias)."""
        rng, fmt = np.random.default_rng(0), self.kernel.weight
        if numbers == WHOLE:
            w, bias = exact_rows(self.n, self.k)[::-1], np.zeros(self.n, np.float32)
        else:
            w = rng.standard_normal((self.n, self.k), np.float32)
            bias = rng.standard_normal(self.n, np.float32)
        q = fmt.quantize(w)
        return fmt.dequantize(q).astype(np.float64), q, bias
