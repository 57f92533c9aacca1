"""Fused attention against float64, to what float32 allows: CUDA's exp is not glibc's."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lbcompiler.targets.cuda.attention_fused import attention_kernel
from tests.gpu.built import Loaded
from tests.gpu.check import Arrays, Figures, OfArch
from tests.gpu.kernels import within
from tests.targets.cuda.attention_cases import (
    CASES,
    TOLERANCE,
    described,
    expected,
    inputs,
    output,
    scratch,
)

BOUND = 4 * TOLERANCE  # as the emulator's: exp of both is within two units in the last place


@dataclass(frozen=True)
class Attention(OfArch):
    """`few` None: with the way for a few queries, which takes keys in parts; False: without."""

    case: str
    arch_name: str
    few: bool | None = None

    @property
    def name(self) -> str:
        parts = "" if self.few is None else ", keys as a whole"
        return f"attention {self.arch_name}, {self.case}{parts}"

    def functions(self) -> dict[str, Any]:
        return {"attention": attention_kernel(described(CASES[self.case], self.few))}

    def outputs(self, kernels: Loaded) -> Arrays:
        case = CASES[self.case]
        written = [output(case), *scratch(case, self.few)]
        return {"out": kernels("attention", list(inputs(case)), written)[0]}

    def judge(self, outputs: Arrays) -> Figures:
        case = CASES[self.case]
        wanted = expected(case, *inputs(case))
        error = np.abs(outputs["out"] - wanted)
        return {"share_of_bound": within(error, np.full_like(error, BOUND), "out")}

    def same(self, ours: Arrays, emulated: Arrays) -> Figures:
        error = np.abs(ours["out"].astype(np.float64) - emulated["out"])
        return {"share_of_bound": within(error, np.full_like(error, 2 * BOUND), "out")}
