"""A library of kernels as files, between the process that builds it and the one that runs it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.device_code import DeviceCode
from lbcompiler.targets.cuda.library import Library
from tests.gpu.check import Array, WrongError

HOST, DEVICE, SOURCES = "host.so", "kernels.safetensors", "sources.json"
CALLS = 3


def build(functions: Mapping[str, Any], arch: Arch, folder: Path) -> None:
    library = Library.of(functions, arch)
    (folder / HOST).write_bytes(library.host)
    (folder / DEVICE).write_bytes(library.device)
    (folder / SOURCES).write_text(json.dumps(dict(library.sources)))


def read(folder: Path) -> Library:
    host, device = ((folder / name).read_bytes() for name in (HOST, DEVICE))
    return Library(host, device, json.loads((folder / SOURCES).read_text()))


class Shelf:
    """Libraries in the folder of one check, each under the names of its functions: what was built
    is found again by another process, where there is no compiler.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, functions: Mapping[str, Any], arch: Arch) -> Library:
        place = self.folder / "-".join(sorted(functions))
        if not place.exists():
            place.mkdir()
            build(functions, arch, place)
        return read(place)


class Loaded:
    """The functions of a library, called with arrays; `emulated`: on the GPU that is not there, of
    which one call tells as much as several.
    """

    def __init__(self, folder: Path, emulated: bool = False) -> None:
        self.device = tvm.cuda(0)
        self.calls = 1 if emulated else CALLS
        library = read(folder)
        if emulated:
            library = replace(library, device=_emulated(folder, library.sources))
        self.module = library.load()

    def __call__(self, name: str, given: list[Array], results: list[Array]) -> list[Array]:
        """What the function writes over `results`, which its memory is filled with before. Raises
        WrongError where a second or third call writes other bits: threads that race.
        """
        first = self._once(name, given, results)
        for call in range(1, self.calls):
            again = self._once(name, given, results)
            for place, (one, other) in enumerate(zip(first, again, strict=True)):
                if one.tobytes() != other.tobytes():
                    raise WrongError(f"result {place} of {name} has other bits in call {call + 1}")
        return first

    def _once(self, name: str, given: list[Array], results: list[Array]) -> list[Array]:
        tensors = [self._put(array) for array in (*given, *results)]
        self.module[name](*tensors)
        self.device.sync()
        return [tensor.numpy() for tensor in tensors[len(given) :]]

    def _put(self, array: Array) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), self.device)


def _emulated(folder: Path, sources: Mapping[str, str]) -> bytes:
    """The device's file with emulated kernels."""
    from tests.targets.cuda.fake_nvcc import image_of

    held = DeviceCode.read(folder / DEVICE)
    image = image_of(dict(sources))
    path = folder / f"emulated.{DEVICE}"
    DeviceCode(held.arch, held.entries, dict.fromkeys(held.cubins, image), {}).save(path)
    return path.read_bytes()
