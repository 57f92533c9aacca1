"""Build one small Relax function with symbolic shapes and run it on numpy arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from lbcompiler.targets.cpu.build import build, lower_to_kernels
from lbcompiler.targets.cpu.isa import Isa, detect
from lbcompiler.targets.cpu.objects import code_of
from lbcompiler.targets.cpu.schedule import explain, schedule_module
from lbcompiler.targets.cpu.threads import set_threads
from lbcompiler.targets.virtual_machine import Built

Shape = Sequence[Any]
B, L, H, W = (tirx.Var(name, "int64") for name in "blhw")


@dataclass
class Function:
    """`emit` applied to inputs of these shapes and dtypes, for an instruction set."""

    module: Any
    isa: Isa

    @cached_property
    def kernels(self) -> Any:
        return lower_to_kernels(self.module, self.isa.tvm_target())

    @property
    def rules(self) -> list[str]:
        """Which rule took each kernel."""
        return [rule for _, rule in explain(self.kernels, self.isa.tvm_target())]

    @property
    def scheduled(self) -> list[Any]:
        """The PrimFuncs after scheduling."""
        functions = schedule_module(self.kernels, self.isa.tvm_target()).functions
        return [f for f in functions.values() if isinstance(f, tirx.PrimFunc)]

    @cached_property
    def built(self) -> Built:
        return build(self.module, self.isa.tvm_target())

    @cached_property
    def machine(self) -> Any:
        return self.built.load(tvm.cpu())

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        set_threads(None)
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
        return self.machine["main"](*tensors).numpy()


def function(
    emit: Callable[..., Any],
    *shapes: Shape,
    dtypes: Sequence[str] = (),
    isa: Isa | None = None,
) -> Function:
    """A module whose main is `emit`, all inputs float32 unless `dtypes` says otherwise."""
    builder = relax.BlockBuilder()
    dtypes = dtypes or ["float32"] * len(shapes)
    inputs = [
        relax.Var(f"x{i}", relax.TensorType(list(shape), dtype))
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    ]
    with builder.function("main", inputs):
        with builder.dataflow():
            result = builder.emit_output(emit(*inputs))
        builder.emit_func_output(result)
    return Function(builder.get(), isa or detect())


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assembly(built: Function) -> str:
    """The text of its machine code."""
    target = built.isa.tvm_target()
    codes = (
        code_of(function.with_attr("global_symbol", f"kernel{number}"), target)
        for number, function in enumerate(built.scheduled)
    )
    return "\n".join(code.inspect_source("asm") for code in codes)
