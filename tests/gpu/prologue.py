"""What a model computes just before a quantization, in the quantization's own kernel: the row to a
bound of its arithmetic, what is quantized of that row to the last bit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lbcompiler.formats import FORMATS
from lbcompiler.ir.prologue import Prologue
from lbcompiler.targets.cuda.bench import rule_of
from lbcompiler.targets.cuda.kernels import LinearKernel, kernel_for
from tests.gpu.built import Loaded
from tests.gpu.check import Arrays, Figures, OfArch
from tests.gpu.kernels import every_bit, within
from tests.gpu.quantize import expected_operands
from tests.targets.cuda.prologue_cases import M, expected, inputs_of

SUM, ROW = "sum", "row"


@dataclass(frozen=True)
class Prologued(OfArch):
    """`prologue` keeps its row. The emulator's exp and roots are glibc's: no referee here."""

    act: str
    arch_name: str
    prologue: Prologue
    k: int

    @property
    def kernel(self) -> LinearKernel:
        return kernel_for(FORMATS[self.act], FORMATS[self.act], self.arch)

    @property
    def name(self) -> str:
        quantizer = f"{self.prologue.name} {self.kernel.quantizer}"
        return f"quantize behind {quantizer} {self.arch_name} K={self.k}"

    def functions(self) -> dict[str, Any]:
        kernel = self.kernel
        return {"quantize": kernel.quantize(self.k, rule_of(kernel), self.prologue)}

    def outputs(self, kernels: Loaded) -> Arrays:
        names = [SUM] * self.prologue.keeps_sum + [ROW]
        written = [np.full((M, self.k), np.nan, np.float32) for _ in names]
        shapes = self.kernel.quantized_shapes(M, self.k)
        written += [np.full(shape, 7).astype(dtype) for shape, dtype in shapes]
        names += map(str, range(len(shapes)))
        found = kernels("quantize", inputs_of(self.prologue, self.k), written)
        return dict(zip(names, found, strict=True))

    def judge(self, outputs: Arrays) -> Figures:
        total, row, bound = expected(self.prologue, self.k)
        held = dict(outputs)
        found = held.pop(ROW)
        share = within(np.abs(found - row), bound, ROW)
        turned = found if self.prologue.rotation is None else self.prologue.rotation.apply(found)
        operands = expected_operands(self.kernel, turned)
        wanted = {str(place): array for place, array in enumerate(operands)}
        if self.prologue.keeps_sum:
            wanted[SUM] = total.astype(np.float32)  # one addition, rounded once
        return {**every_bit(held, wanted), "share_of_bound": share}
