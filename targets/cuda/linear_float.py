"""y = epilogue(x W^T + b) in float32, for the linears that are not quantized; scheduled by rule."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from lbcompiler.formats import Quantized
from lbcompiler.targets.configs import Program
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.elementwise import ACTIVATIONS
from lbcompiler.targets.cuda.intrinsics import OPAQUE

Array = Any
Spec = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class NoConfig:
    """There is nothing to choose."""


@dataclass(frozen=True)
class FloatLinear:
    """W (N, K) as it is."""

    arch: Arch

    @property
    def name(self) -> str:
        return f"float32_{self.arch.name}"

    route = "float"
    packing = "rows"
    quantizer = "float32"

    def quantize(self, k: int, scale_rule: str) -> Any:
        """None: rows go in as they are."""

    def quantized_specs(self, k: int) -> list[Spec]:
        return [((k,), "float32")]

    def gemm(
        self, n: int, k: int, *, bias: bool, epilogue: str = "none", config: NoConfig | None = None
    ) -> Any:
        """PrimFunc(x f32 (M, k), W f32 (n, k)[, bias f32 (n,)], y f32 (M, n)), not scheduled."""
        m = tirx.Var("m", "int64")
        x = te.placeholder((m, k), "float32", "x")
        w = te.placeholder((n, k), "float32", "w")
        b = te.placeholder((n,), "float32", "b")
        r = te.reduce_axis((0, k), "r")
        y = te.compute((m, n), lambda i, j: te.sum(x[i, r] * w[j, r], axis=[r]), "product")

        def finished(i: Any, j: Any) -> Any:
            return ACTIVATIONS[epilogue](y[i, j] + b[j] if bias else y[i, j])

        if bias or epilogue != "none":
            y = te.compute((m, n), finished, "y")
        arguments = [x, w, *([b] if bias else []), y]
        func = te.create_prim_func(arguments, index_dtype_override="int64")
        return func.with_attr("op_pattern", OPAQUE)

    def default_config(self, n: int, k: int) -> NoConfig:
        return NoConfig()

    def programs(self, n: int, k: int) -> tuple[Program, ...]:
        return ()

    def space(self, m: int, n: int, k: int) -> dict[str, tuple[int, ...]]:
        return {}

    def scratch(self, n: int, config: NoConfig) -> list[Spec]:
        """Nothing but y is written."""
        return []

    def packed_specs(self, n: int, k: int) -> list[Spec]:
        return [((n, k), "float32")]

    def pack(self, weight: Quantized | Array) -> tuple[Array, ...]:
        if isinstance(weight, Quantized):
            raise ValueError(f"{self.name} takes float weights")
        return (np.ascontiguousarray(weight, np.float32),)
