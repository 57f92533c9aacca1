"""A linear's quantization and GEMM, at row counts of every kernel and tails everywhere.

Each is run on normal numbers, whose sums depend on the order of the additions, and on whole ones,
whose sums do not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from lbcompiler.epilogues import EPILOGUES
from lbcompiler.formats import FORMATS
from lbcompiler.targets.cuda.bench import exact_rows, rule_of
from lbcompiler.targets.cuda.kernels import Config, LinearKernel, kernel_for
from lbcompiler.targets.cuda.layout import DEPTH, depths
from tests.gpu.built import Loaded
from tests.gpu.check import Array, Arrays, Figures, OfArch, WrongError
from tests.gpu.kernels import every_bit, within
from tests.targets.cuda.reference import activation_operands, products, rows_of

NORMAL, WHOLE = "normal", "whole"
TRUNCATION = 2.0**-23  # of a float32 in any rounding: to nearest it would be half
STEEPEST = 1.13  # gelu's slope, which is 1.129 at sqrt(2)
UNITS = 16 * 2.0**-24  # of exp or erf, a few units in the last place, and what follows on them
BEHIND_THE_SUM = 4  # the two tensor scales, the bias, the activation of `none`


def gemms(
    weight: str, act: str | None, arch: str, rows: tuple[int, ...], n: int, k: int
) -> Iterator["Gemm"]:
    """A check for each program of the kernel that some M of `rows` takes."""
    whole = Gemm(weight, act, arch, rows, n, k)
    for program in dict.fromkeys(map(whole.program_of, rows)):
        yield replace(whole, rows=tuple(m for m in rows if whole.program_of(m) == program))


@dataclass(frozen=True)
class Gemm(OfArch):
    """`rows`: the M's, of one program; `config`: fields other than the default's. With
    `gelu`, whose erf is not numpy's, only normal numbers are multiplied.
    """

    weight: str
    act: str | None
    arch_name: str
    rows: tuple[int, ...]
    n: int
    k: int
    config: tuple[tuple[str, int], ...] = ()
    epilogue: str = "none"

    @property
    def kernel(self) -> LinearKernel:
        act = None if self.act is None else FORMATS[self.act]
        return kernel_for(FORMATS[self.weight], act, self.arch)

    @property
    def name(self) -> str:
        return f"{self.library}, {self.program_of(self.rows[0])} rows"

    @property
    def library(self) -> str:
        other = "".join(f" {name}={value}" for name, value in self.config)
        other += "" if self.epilogue == "none" else f" {self.epilogue}"
        return f"gemm {self.kernel.name} N={self.n} K={self.k}{other}"

    @property
    def family(self) -> str:
        return f"Gemm, {self.kernel.route}, {self.program_of(self.rows[0])} rows"

    def program_of(self, m: int) -> str:
        programs = self.kernel.programs(self.n, self.k)
        return next(p.name for p in programs if p.most is None or m <= p.most)

    def functions(self) -> dict[str, Any]:
        kernel, config = self.kernel, self._config
        return {
            "gemm": kernel.gemm(self.n, self.k, bias=True, epilogue=self.epilogue, config=config),
            "quantize": kernel.quantize(self.k, rule_of(kernel)),
        }

    def outputs(self, kernels: Loaded) -> Arrays:
        kernel, n, k = self.kernel, self.n, self.k
        scratch = kernel.scratch(n, self._config)
        results: Arrays = {}
        for numbers in (NORMAL, WHOLE) if self.epilogue == "none" else (NORMAL,):
            _, w, bias = self._weights(numbers)
            packed = [np.asarray(part) for part in kernel.pack(w)]
            for m in self.rows:
                shapes = kernel.quantized_shapes(m, k)
                empty = [np.full(shape, 7).astype(dtype) for shape, dtype in shapes]
                operands = kernels("quantize", [self._x(m, numbers)], empty)
                written = [np.full((m, n), np.nan, np.float32)]
                written += [np.full(shape, np.nan, dtype) for shape, dtype in scratch]
                found = kernels("gemm", [*operands, *packed, bias], written)
                results[f"{numbers} {m}"] = found[0]
        return results

    def judge(self, outputs: Arrays) -> Figures:
        shares: dict[str, list[float]] = {NORMAL: [], WHOLE: []}
        wrong: list[str] = []
        for name, y in outputs.items():
            numbers, m = name.split()
            wanted, bound = self._normal(int(m)) if numbers == NORMAL else self._exact(int(m))
            what = f"M={m}, {numbers} numbers"
            try:
                shares[numbers].append(within(np.abs(y - wanted), bound, what))
            except WrongError as error:
                wrong.append(str(error))
        if wrong:
            right = len(outputs) - len(wrong)
            raise WrongError(f"{'; '.join(wrong)}; {right} of {len(outputs)} are right")
        figures: Figures = {"share_of_bound": max(shares[NORMAL])}
        if shares[WHOLE]:
            whole = max(shares[WHOLE]) if self._behind_the_sum else "every bit"
            figures["whole_numbers"] = whole
        return figures

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        shares, equal = [], []
        for name, found in ours.items():
            numbers, m = name.split()
            if numbers == WHOLE:
                every_bit({name: found}, {name: emulated[name]})
                continue
            error = np.abs(found.astype(np.float64) - emulated[name])
            shares.append(within(error, 2 * self._normal(int(m))[1], f"M={m}"))
            equal.append(float((found == emulated[name]).mean()))
        share = float(np.mean(equal))
        return {
            "share_of_bound": max(shares),
            "equal_bits": share,
            "whole_numbers": "every bit",
        }

    @property
    def _config(self) -> Config:
        return replace(self.kernel.default_config(self.n, self.k), **dict(self.config))

    def _normal(self, m: int) -> tuple[Array, Array]:
        """(y, how far from it normal numbers may be)."""
        values, _, bias = self._weights(NORMAL)
        x = self._values(m)
        sums, bound = x @ values.T + bias, self._bound(x, values, bias)
        if self.epilogue == "none":
            return sums, bound
        wanted = EPILOGUES[self.epilogue](sums)
        return wanted, STEEPEST * bound + UNITS * np.maximum(1, np.abs(sums))

    def _exact(self, m: int) -> tuple[Array, Array]:
        """(y, how far from it whole numbers may be)."""
        wanted = exact_product(self.kernel, self._x(m, WHOLE), self._weights(WHOLE)[1])
        return wanted, behind_the_sum(self.kernel) * TRUNCATION * np.abs(wanted)

    def _bound(self, x: Array, values: Array, bias: Array) -> Array:
        """Products are exact. Each is added once in a tensor core, in any order, each addition or
        alignment losing at most a unit in the last place of what was summed; then the sums of warps
        and of parts of K, and what follows on them.
        """
        kernel, config = self.kernel, self._config
        parts = max(config.splits, config.few_splits)
        products = depths(self.k) * DEPTH * kernel.parts
        terms = products + config.few_warps + parts + BEHIND_THE_SUM
        return np.asarray(terms * TRUNCATION * (np.abs(x) @ np.abs(values).T + np.abs(bias)))

    @property
    def _behind_the_sum(self) -> int:
        return behind_the_sum(self.kernel)

    def _x(self, m: int, numbers: str) -> Array:
        if numbers == WHOLE:
            return exact_rows(m, self.k)
        return np.random.default_rng(m).standard_normal((m, self.k), np.float32)

    def _values(self, m: int) -> Array:
        """What normal activations are once they are quantized, float64 (m, K)."""
        kernel, x = self.kernel, self._x(m, NORMAL)
        if kernel.act is None:
            return np.asarray(rows_of(activation_operands(kernel, x), self.k))
        q = kernel.act.quantize(x, rule_of(kernel), per_row=True)
        return np.asarray(kernel.act.dequantize(q).astype(np.float64))

    def _weights(self, numbers: str) -> tuple[Array, Any, Array]:
        return _weights(self.weight, self.n, self.k, numbers)


@lru_cache(maxsize=4)
def _weights(weight: str, n: int, k: int, numbers: str) -> tuple[Array, Any, Array]:
    """(values float64 (N, K), quantized, bias)."""
    rng, fmt = np.random.default_rng(0), FORMATS[weight]
    if numbers == WHOLE:
        w, bias = exact_rows(n, k)[::-1], np.zeros(n, np.float32)
    else:
        w = rng.standard_normal((n, k), np.float32)
        bias = rng.standard_normal(n, np.float32)
    q = fmt.quantize(w)
    return fmt.dequantize(q).astype(np.float64), q, bias


def behind_the_sum(kernel: LinearKernel) -> int:
    """Roundings of a sum that is exact: tensor scales are no powers of two."""
    formats = (kernel.weight, kernel.act)
    has_scale = any(fmt is not None and fmt.has_tensor_scale for fmt in formats)
    return BEHIND_THE_SUM if has_scale else 0


def exact_product(kernel: LinearKernel, x: Array, w: Any) -> Array:
    """Of whole numbers x (M, K) and quantized ones (N, K): sums first, then the tensor scales."""
    right = products(w, kernel.weight).astype(np.float64)
    scale = np.float64(1 if w.tensor_scale is None else w.tensor_scale)
    if kernel.act is None:
        return np.asarray(x.astype(np.float64) @ right.T * scale)
    q = kernel.act.quantize(x, rule_of(kernel), per_row=True)
    rows = np.float64(1) if q.tensor_scale is None else q.tensor_scale.reshape(len(x), 1)
    sums = products(q, kernel.act).astype(np.float64) @ right.T
    return np.asarray(sums * rows * scale)
