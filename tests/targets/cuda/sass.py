"""The instructions of compiled kernels, and what ptxas says of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tvm

from lbcompiler.targets.cores import at_once
from lbcompiler.targets.cuda import codegen
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.resources import instructions_of
from lbcompiler.targets.cuda.toolchain import find_nvcc, find_tool

EVERY = ("",)  # how the names of all instructions begin


@dataclass(frozen=True)
class Kernel:
    """How often each instruction stands in a kernel, by its whole name."""

    instructions: Mapping[str, int]

    def has(self, *parts: str) -> bool:
        """Whether an instruction holds all of the parts of its name, in this order."""
        pattern = ".*".join(re.escape(part) for part in parts)
        return any(re.match(pattern, name) for name in self.instructions)


def can_disassemble() -> bool:
    return all(find_tool(name) for name in ("nvcc", "cuobjdump", "nvdisasm"))


def kernels_of(functions: dict[str, Any], arch: Arch) -> tuple[dict[str, Kernel], str]:
    """Name -> instructions of every kernel of some PrimFuncs, and ptxas' words: of the texts that
    an artifact has, compiled as they are there.
    """
    named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
    _, kernels = codegen.generate(tvm.IRModule(named), arch.tvm_target)
    nvcc = find_nvcc()

    def compiled(kernel: codegen.Kernel) -> tuple[dict[str, dict[str, int]], str]:
        cubin, said = nvcc.compile(kernel.source, arch)
        return instructions_of(cubin, EVERY), said

    results = at_once(compiled, kernels)
    found = {name: Kernel(held) for one, _ in results for name, held in one.items()}
    assert set(found) == {kernel.name for kernel in kernels}
    return found, "".join(said for _, said in results)
