"""How fast: shares of what the same GPU reaches in the same rounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lbcompiler.bench.on_cuda import interleaved
from lbcompiler.bench.peers_cuda import cublas_bf16, peers
from lbcompiler.errors import LbcError
from lbcompiler.formats import FORMATS
from lbcompiler.ir.rotation import Rotation
from lbcompiler.targets.configs import Shape
from lbcompiler.targets.cuda import tuned_for
from lbcompiler.targets.cuda.bench import (
    FEW_ROWS,
    SAMPLE_ROWS,
    Linear,
    exact_rows,
    functions_of,
    packed_weights,
    quantized_rows,
    results_for,
    rotated_function,
    timed_linear,
    timed_quantize,
)
from lbcompiler.targets.cuda.ceilings import COPY, copies, copy_function, copy_rate
from lbcompiler.targets.cuda.clock import Clock, Recorded
from lbcompiler.targets.cuda.kernels import LinearKernel, kernel_for
from lbcompiler.targets.cuda.library import MakeLibrary
from tests.gpu.built import Shelf
from tests.gpu.check import Figures, OfArch
from tests.gpu.gemm import TRUNCATION, behind_the_sum, exact_product
from tests.gpu.kernels import within

ROUNDS = 11
OF_COPY, OF_CUBLAS = 0.8, 0.7  # the shares to be reached


@dataclass(frozen=True)
class GemmSpeed(OfArch):
    """Up to 16 rows: bytes of packed weights a second against a copy within the GPU; above:
    operations a second against cuBLAS in bfloat16, at the same shape. `reached` counts the whole
    linear, as `lbc bench gemm` does: quantization is in its time.
    """

    weight: str
    act: str | None
    arch_name: str
    shape: Shape

    is_measure = True

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"speed gemm {self.weight} x {self.act or 'none'} {shape} {self.arch_name}"

    def build(self, folder: Path) -> None:
        for functions in (self._functions(), copy_function()):
            Shelf(folder).of(functions, self.arch)

    def run(self, folder: Path) -> Figures:
        clock, tuned, library = Clock(), tuned_for(self.arch, ""), Shelf(folder).of
        share_of_bound = self._checked(clock, library)
        is_few = self.shape[0] <= FEW_ROWS
        cold = clock.cold_bytes if is_few else 0
        linear = timed_linear(*self._formats, self.arch, self.shape, cold, tuned, clock, library)
        work = {"gemm": linear.gemm, "whole": linear.whole}
        others, missing, moved = self._others(clock, cold, library)
        took = interleaved(clock, work | others, ROUNDS)
        figures: Figures = {
            "gemm_ms": took["gemm"] * 1e3,
            "with_quantization_ms": took["whole"] * 1e3,
            "whole_numbers": share_of_bound or "every bit",
            "config": linear.config_source,
            "is_graph": linear.gemm.is_graph,
            **{f"{name}_ms": took[name] * 1e3 for name in others if not name.startswith(COPY)},
            **{name: f"not measured ({reason})" for name, reason in missing.items()},
        }
        if is_few:
            copy = copy_rate(took, moved)
            rate, whole = (linear.weight_bytes / took[name] for name in ("gemm", "whole"))
            figures |= {"weight_gb_s": rate * 1e-9, "copy_gb_s": copy * 1e-9, "of": "copy"}
            shares = {"share": rate / copy, "share_with_quantization": whole / copy}
            return figures | shares | {"wanted": OF_COPY, "reached": whole / copy >= OF_COPY}
        m, k, n = self.shape
        figures["gops"] = 2e-9 * m * k * n / took["gemm"]
        if "cublas_bf16" not in took:
            return figures
        share = took["cublas_bf16"] / took["gemm"]
        figures |= {"of": "cublas_bf16", "share": share, "wanted": OF_CUBLAS}
        whole = took["cublas_bf16"] / took["whole"]
        return figures | {"share_with_quantization": whole, "reached": whole >= OF_CUBLAS}

    def _checked(self, clock: Clock, library: MakeLibrary) -> float:
        """The share of its bound that a product of whole numbers takes at this shape, which is
        larger than any other check's: blocks that stay take several shares. Raises WrongError.
        """
        (m, k, n), kernel, config = self.shape, self._kernel, self._config
        linear = Linear(kernel, m, k, n, library(self._functions(), self.arch).load(), clock)
        x = exact_rows(m, k)
        packed, results = packed_weights(linear, None), results_for(kernel, m, n, config)
        operands = quantized_rows(linear, x)
        clock.run(lambda: linear.module["gemm"](*operands, *packed, *results))
        sample = kernel.weight.quantize(exact_rows(min(n, SAMPLE_ROWS), k))
        sums = exact_product(kernel, x, sample)
        wanted = sums[:, np.arange(n) % sums.shape[1]]  # as `packed_weights` repeats the sample
        bound = behind_the_sum(kernel) * TRUNCATION * np.abs(wanted)
        return within(np.abs(results[0].numpy() - wanted), bound, "whole numbers")

    def _functions(self) -> dict[str, Any]:
        _, k, n = self.shape
        return functions_of(self._kernel, n, k, self._config)

    @property
    def _kernel(self) -> LinearKernel:
        return kernel_for(*self._formats, self.arch)

    @property
    def _config(self) -> Any:
        _, k, n = self.shape
        return tuned_for(self.arch, "").choose(self._kernel, n, k).config

    def _others(
        self, clock: Clock, cold: int, library: MakeLibrary
    ) -> tuple[dict[str, Recorded], dict[str, str], int]:
        """(what is timed beside it, why others are not, bytes that a copy moves)."""
        found, moved = copies(self.arch, clock, library)
        others, missing = peers(("torch",), self.shape, cold, clock)
        try:
            found["cublas_bf16"] = cublas_bf16(self.shape, cold, clock)
        except LbcError as error:
            missing["cublas_bf16"] = str(error)
        return found | others, missing, moved

    @property
    def _formats(self) -> tuple:
        return FORMATS[self.weight], None if self.act is None else FORMATS[self.act]


@dataclass(frozen=True)
class QuantizeSpeed(OfArch):
    """Bytes read and written against a copy within the GPU."""

    act: str
    rotation: Rotation
    arch_name: str
    shape: tuple[int, int]

    is_measure = True

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"speed quantize {self.act} {self.rotation.name} {shape} {self.arch_name}"

    def build(self, folder: Path) -> None:
        fmt = FORMATS[self.act]
        kernel = kernel_for(fmt, fmt, self.arch)
        rotated = rotated_function(kernel, self.shape[1], self.rotation)
        for functions in (rotated, copy_function()):
            Shelf(folder).of(functions, self.arch)

    def run(self, folder: Path) -> Figures:
        clock, library, what = Clock(), Shelf(folder).of, (FORMATS[self.act], self.arch, self.shape)
        recorded, size = timed_quantize(*what, self.rotation, clock, library)
        ways, moved = copies(self.arch, clock, library)
        took = interleaved(clock, {"quantize": recorded, **ways}, ROUNDS)
        copy = copy_rate(took, moved)
        rate = size / took["quantize"]
        return {
            "ms": took["quantize"] * 1e3,
            "gb_s": rate * 1e-9,
            "copy_gb_s": copy * 1e-9,
            "of": "copy",
            "share": rate / copy,
            "wanted": OF_COPY,
            "reached": rate / copy >= OF_COPY,
            "is_graph": recorded.is_graph,
        }
