"""Kernels without a model around them: PrimFuncs compiled together, to be timed, tuned and checked.

The way is that of an artifact: host code in a library of its own, a cubin for each kernel, both
loaded through TVM's CUDA runtime.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.cache import compile_all
from lbcompiler.targets.cuda.codegen import generate
from lbcompiler.targets.cuda.device_code import DeviceCode
from lbcompiler.targets.cuda.toolchain import find_nvcc
from lbcompiler.targets.virtual_machine import Built

MakeLibrary = Callable[[Mapping[str, Any], Arch], "Library"]  # `Library.of`, or one that keeps them


@dataclass(frozen=True)
class Library:
    """`host`: a shared library; `device`: the file of the kernels; `sources`: the text of each."""

    host: bytes
    device: bytes
    sources: Mapping[str, str]

    @classmethod
    def of(cls, functions: Mapping[str, Any], arch: Arch) -> "Library":
        """Raises ConfigError without an nvcc that compiles for `arch`."""
        nvcc = find_nvcc()
        nvcc.check(arch)
        named = {name: f.with_attr("global_symbol", name) for name, f in functions.items()}
        executable, kernels = generate(tvm.IRModule(named), arch.tvm_target)
        code = DeviceCode.of(kernels, compile_all([k.source for k in kernels], arch, nvcc), arch)
        with tempfile.TemporaryDirectory(prefix="lbc-cuda-") as folder:
            host, device = Path(folder, "host.so"), Path(folder, "kernels.safetensors")
            Built(executable).link(host)
            code.save(device)
            return cls(host.read_bytes(), device.read_bytes(), code.sources)

    def load(self) -> Any:
        """The module of the functions, which take tensors of the GPU. TVM's CUDA runtime has to be
        there (`machine.gpu_for`).
        """
        with tempfile.TemporaryDirectory(prefix="lbc-cuda-") as folder:
            host, device = Path(folder, "host.so"), Path(folder, "kernels.safetensors")
            host.write_bytes(self.host)
            device.write_bytes(self.device)
            module = tvm.runtime.load_module(str(host))
            for kernels in DeviceCode.read(device).to_modules():
                module.import_module(kernels)
        return module
