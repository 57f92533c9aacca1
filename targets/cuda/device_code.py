"""The kernels of one architecture: their machine code, how they are launched, what they take.

In an artifact they are a safetensors file: a tensor of bytes for each cubin, and in the metadata a
table of the kernels. `to_module` makes of it what TVM launches kernels from.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lbcompiler.errors import ArtifactError
from lbcompiler.files import umask
from lbcompiler.target import KernelUse
from lbcompiler.targets.cuda.arch import Arch, arch_named
from lbcompiler.targets.cuda.cache import Cubin
from lbcompiler.targets.cuda.codegen import Kernel
from lbcompiler.targets.cuda.resources import occupancy

CREATE = "ffi.Module.load_from_bytes.cuda"  # of TVM's CUDA runtime
_TENSOR_MAP = 1  # ArgExtraTags::kTensorMap of TVM's runtime/metadata.h


@dataclass(frozen=True)
class Entry:
    """A kernel without its text; `cubin` is the name of the code that holds it."""

    name: str
    cubin: str
    arguments: tuple[str, ...]
    launch: tuple[str, ...]
    tensor_maps: tuple[bool, ...]
    use: KernelUse


@dataclass(frozen=True)
class DeviceCode:
    arch: Arch
    entries: tuple[Entry, ...]
    cubins: dict[str, bytes]
    sources: dict[str, str]  # by kernel; empty when read from a file

    @classmethod
    def of(cls, kernels: Sequence[Kernel], cubins: Sequence[Cubin], arch: Arch) -> "DeviceCode":
        entries = tuple(
            Entry(
                kernel.name,
                kernel.name,
                kernel.arguments,
                kernel.launch,
                kernel.tensor_maps,
                _use(kernel, cubin, arch),
            )
            for kernel, cubin in zip(kernels, cubins, strict=True)
        )
        code = {kernel.name: cubin.code for kernel, cubin in zip(kernels, cubins, strict=True)}
        return cls(arch, entries, code, {kernel.name: kernel.source for kernel in kernels})

    def save(self, path: Path) -> None:
        table = [asdict(entry) for entry in self.entries]
        tensors = {name: np.frombuffer(code, np.uint8) for name, code in self.cubins.items()}
        save_file(tensors, path, {"arch": self.arch.name, "kernels": json.dumps(table)})
        path.chmod(0o666 & ~umask())  # the library's files are for their owner alone

    @classmethod
    def read(cls, path: Path) -> "DeviceCode":
        """Raises ArtifactError."""
        try:
            with safe_open(path, "numpy") as file:
                metadata = file.metadata()
                cubins = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118  # no dict
            entries = tuple(
                Entry(
                    held["name"],
                    held["cubin"],
                    tuple(held["arguments"]),
                    tuple(held["launch"]),
                    tuple(held["tensor_maps"]),
                    KernelUse(**held["use"]),
                )
                for held in json.loads(metadata["kernels"])
            )
            return cls(arch_named(metadata["arch"]), entries, cubins, {})
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} cannot be read ({error}): compile the model again"
            ) from None

    def to_modules(self) -> list[Any]:
        """A `tvm.runtime` module for each cubin; TVM's CUDA runtime has to be there."""
        create = tvm.get_global_func(CREATE)
        return [
            create(_module_bytes(name, self.entries, code)) for name, code in self.cubins.items()
        ]


def _use(kernel: Kernel, cubin: Cubin, arch: Arch) -> KernelUse:
    used = cubin.usage[kernel.name]
    shared = used.shared_bytes + (kernel.dynamic_shared or 0)
    return KernelUse(
        name=kernel.name,
        arch=arch.name,
        registers=used.registers,
        spill_bytes=used.spill_bytes,
        shared_bytes=shared,
        threads=kernel.threads,
        occupancy=round(occupancy(arch, kernel.threads, used.registers, shared), 4),
    )


def _module_bytes(cubin: str, entries: Sequence[Entry], code: bytes) -> bytes:
    """As TVM's CUDA module writes itself: format, {kernel: its information}, code."""
    held = [entry for entry in entries if entry.cubin == cubin]
    infos = b"".join(_string(entry.name) + _information(entry) for entry in held)
    return _string("cubin") + _count(held) + infos + _size(len(code)) + code


def _information(entry: Entry) -> bytes:
    """runtime::FunctionInfo: name, dtypes, launch parameters, tags of the arguments."""
    dtypes = b"".join(_dtype(dtype) for dtype in entry.arguments)
    tags = b"".join(_string(tag) for tag in entry.launch)
    maps = b"".join(
        (_TENSOR_MAP if is_map else 0).to_bytes(4, "little") for is_map in entry.tensor_maps
    )
    parts = (entry.arguments, dtypes), (entry.launch, tags), (entry.tensor_maps, maps)
    return _string(entry.name) + b"".join(_count(items) + data for items, data in parts)


def _dtype(name: str) -> bytes:
    """DLDataType: code, bits, lanes."""
    dtype = tvm.DataType(name)
    fields = (int(dtype.type_code), 1), (int(dtype.bits), 1), (int(dtype.lanes), 2)
    return b"".join(value.to_bytes(size, "little") for value, size in fields)


def _string(text: str) -> bytes:
    data = text.encode()
    return _size(len(data)) + data


def _count(items: Sequence[Any]) -> bytes:
    return _size(len(items))


def _size(value: int) -> bytes:
    return value.to_bytes(8, "little")
