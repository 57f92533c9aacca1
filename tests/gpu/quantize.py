"""Quantization of activations, rotated or not, and decoding of every code under every scale: where
no tensor core adds anything up, every bit is that of numpy.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lbcompiler.formats import FORMATS, decode_scales
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.cuda import layout_tcgen05
from lbcompiler.targets.cuda.bench import rotated_quantize, rule_of
from lbcompiler.targets.cuda.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cuda.layout_native import rows_of_bytes, rows_of_scales
from lbcompiler.targets.cuda.native_kernel import NativeKernel
from lbcompiler.targets.cuda.tcgen05_kernel import Tcgen05Kernel
from tests.gpu.built import Loaded
from tests.gpu.check import Array, Arrays, Figures, OfArch
from tests.gpu.kernels import every_bit
from tests.targets.cuda.decoding import decoding, every_pair, exact, operands
from tests.targets.cuda.reference import activation_operands, to_bfloat16


@dataclass(frozen=True)
class Quantize(OfArch):
    """`act` None splits rows into two bfloat16. K in multiples of the rotation's size."""

    act: str | None
    arch_name: str
    rotation: Rotation | None
    rows: int
    k: int

    @property
    def kernel(self) -> LinearKernel:
        fmt = FORMATS[self.act or "nvfp4"]
        return kernel_for(fmt, None if self.act is None else fmt, self.arch)

    @property
    def name(self) -> str:
        rotated = "" if self.rotation is None else f" {self.rotation.name}"
        return f"quantize {self.kernel.quantizer}{rotated} {self.arch_name} K={self.k}"

    def functions(self) -> dict[str, Any]:
        return {"quantize": rotated_quantize(self.kernel, self.k, self.rotation)}

    def outputs(self, kernels: Loaded) -> Arrays:
        shapes = self.kernel.quantized_shapes(self.rows, self.k)
        empty = [np.full(shape, 7).astype(dtype) for shape, dtype in shapes]
        found = _readable(self.kernel, kernels("quantize", [self._x()], empty), self.rows, self.k)
        return {str(i): array for i, array in enumerate(found)}

    def judge(self, outputs: Arrays) -> Figures:
        x = self._x() if self.rotation is None else self.rotation.apply(self._x())
        wanted = expected_operands(self.kernel, x)
        return every_bit(outputs, {str(i): array for i, array in enumerate(wanted)})

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        return every_bit(ours, emulated)

    def _x(self) -> Array:
        """Large, small and zero rows, special numbers, ties of the scale rules."""
        rng = np.random.default_rng(self.k)
        x = rng.standard_normal((self.rows, self.k), np.float32)
        x *= np.float32(10) ** rng.integers(-3, 4, x.shape).astype(np.float32)
        x[1], x[1, 3] = 0, -0.0
        x[2, 5], x[3, 40] = np.inf, np.nan
        x[4] *= np.float32(1e-38)
        x[5] *= np.float32(1e34)
        x[6] = np.float32(2.0) ** rng.integers(-20, 20, self.k)
        x[7] = np.ldexp(np.float32(1), -149)
        return x


def expected_operands(kernel: LinearKernel, x: Array) -> list[Array]:
    """What `quantize` must write."""
    if kernel.act is None or kernel.route == "exact":
        return activation_operands(kernel, x, rule_of(kernel))
    assert isinstance(kernel, NativeKernel)
    q, (rows, k) = kernel.act.quantize(x, rule_of(kernel), per_row=True), x.shape
    if isinstance(kernel, Tcgen05Kernel):
        scales = layout_tcgen05.pack_scales(q.scales, kernel.pair, k)
    else:
        scales = rows_of_scales(q.scales, kernel.pair, k)
    operands = [rows_of_bytes(q.codes, kernel.pair), scales]
    if q.tensor_scale is not None:
        operands.append(np.asarray(q.tensor_scale, np.float32))
    return _readable(kernel, operands, rows, k)


def _readable(kernel: LinearKernel, operands: list[Array], rows: int, k: int) -> list[Array]:
    """Without what nobody reads: tensor memory has scales of rows that there are not."""
    if not isinstance(kernel, Tcgen05Kernel):
        return operands
    blocks = kernel.pair.depths(k) * kernel.pair.row_scales
    codes, scales, *others = operands
    return [codes, layout_tcgen05.unpack_scales(scales, rows, blocks), *others]


@dataclass(frozen=True)
class Decode(OfArch):
    """Device functions that make bfloat16 of codes and scales."""

    fmt: str
    arch_name: str

    @property
    def name(self) -> str:
        return f"decode {self.fmt} {self.arch_name}, every code under every scale"

    def functions(self) -> dict[str, Any]:
        fmt = FORMATS[self.fmt]
        return {"decode": decoding(fmt, len(every_pair(fmt)[0]))}

    def outputs(self, kernels: Loaded) -> Arrays:
        given = list(operands(FORMATS[self.fmt]))
        (found,) = kernels("decode", given, [np.zeros_like(given[0])])
        return {"low": found.astype(np.uint16), "high": (found >> 16).astype(np.uint16)}

    def judge(self, outputs: Arrays) -> Figures:
        fmt = FORMATS[self.fmt]
        codes, scales = every_pair(fmt)
        with np.errstate(over="ignore", invalid="ignore"):
            bits = to_bfloat16(exact(fmt, codes, scales).astype(np.float32))
        bits[np.isnan(decode_scales(scales, fmt.scale))] = 0x7FC0
        known = np.isfinite(fmt.element.values[codes])  # packing leaves no other code
        found = {name: array[known] for name, array in outputs.items()}
        return every_bit(found, dict.fromkeys(found, bits[known]))

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        return every_bit(ours, emulated)
