"""A GPU that is not there: an artifact for CUDA, run through our runtime and TVM's on a driver and
a CUDA runtime of ours (`fake_cuda/`), its kernels emulated on the processor (`tests.emulator`).

What runs is the generated CUDA text of each kernel, compiled by g++ in place of nvcc; the host's
code, the memory plan and the launches are the artifact's own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from lbcompiler.artifact import MANIFEST, sha256_of
from lbcompiler.targets.cuda.toolchain import find_nvcc, pip_folders
from tests.emulator.build import TOOLKIT
from tests.emulator.ptx import translate

SOURCES = Path(__file__).parent / "fake_cuda"
FOLDER = Path(tempfile.gettempdir(), f"lbcompiler-fake-cuda-{os.getuid()}")
ROOT = Path(__file__).parents[3]
LAUNCH = """
template <class... P, size_t... I>
inline void emulated_call(void (*kernel)(P...), void** a, std::index_sequence<I...>) {
  kernel(*(std::decay_t<P>*)a[I]...);
}
template <class... P>
inline int emulated_launch(const unsigned* s, size_t shared, void** a, void (*kernel)(P...)) {
  try {
    emulator::run_grid(dim3(s[0], s[1], s[2]), dim3(s[3], s[4], s[5]), shared, [=] {
      emulated_call(kernel, a, std::index_sequence_for<P...>());
    });
  } catch (const std::exception& error) {
    fprintf(stderr, "emulator: %s\\n", error.what());
    return 1;
  }
  return 0;
}
"""


def with_emulated_kernels(artifact: Path, isa: str) -> None:
    """Put emulated kernels in place of an artifact's, which was compiled with `keep_source`."""
    path = artifact / f"kernels.{isa}.safetensors"
    with safe_open(path, "numpy") as file:
        metadata, names = file.metadata(), list(file.keys())
    texts = {name: (artifact / f"source.{isa}" / f"{name}.cu").read_text() for name in names}
    image = np.frombuffer(image_of(texts), np.uint8)
    save_file(dict.fromkeys(names, image), path, metadata)
    manifest = json.loads((artifact / MANIFEST).read_text())
    manifest["files"][path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (artifact / MANIFEST).write_text(json.dumps(manifest))


def image_of(texts: dict[str, str]) -> bytes:
    """What stands for the cubin of these kernels: the path of their emulation."""
    return str(_kernels(texts)).encode() + b"\0"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program on a machine with the GPU."""
    folders = f"{fake_cuda()}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": folders, **environment},
    )


def fake_cuda() -> Path:
    """A folder with libcuda.so.1 and libcudart.so.13."""
    texts = [path.read_bytes() for path in [*sorted(SOURCES.iterdir()), TOOLKIT / "tensor_map.h"]]
    folder = FOLDER / hashlib.sha256(b"".join(texts)).hexdigest()[:24]
    if folder.exists():
        return folder
    FOLDER.mkdir(exist_ok=True)
    near = find_nvcc().path.resolve().parents[1] / "include"
    places = [near, *(f / "include" for f in pip_folders()), Path("/usr/local/cuda/include")]
    include = next(place for place in places if (place / "cuda.h").is_file())
    with tempfile.TemporaryDirectory(dir=FOLDER) as made:
        versions = Path(made, "versions.map")
        versions.write_text("libcudart.so.13 { global: *; };")
        common = ["g++", "-O1", "-w", "-shared", "-fPIC", f"-I{include}", f"-I{TOOLKIT}"]
        _compile(
            [*common, "-Wl,-soname,libcuda.so.1", SOURCES / "driver.cpp"], made, "libcuda.so.1"
        )
        named = ["-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={versions}"]
        _compile([*common, *named, SOURCES / "runtime.cpp"], made, "libcudart.so.13")
        _move(made, folder)
    return folder


def _kernels(texts: dict[str, str]) -> Path:
    """The library of all kernels: each text in a namespace, for helpers have the same names."""
    body = "".join(
        f"namespace text{i} {{\n{_without_includes(translate(text))}\n}}\n"
        f'extern "C" int launch_{name}(const unsigned* s, size_t shared, void** a) '
        f"{{ return emulated_launch(s, shared, a, text{i}::{name}); }}\n"
        for i, (name, text) in enumerate(texts.items())
    )
    source = f'#include "language.h"\n{LAUNCH}{body}'
    headers = "".join(
        path.read_text() for root in (TOOLKIT, SOURCES) for path in sorted(root.rglob("*.h"))
    )
    folder = FOLDER / hashlib.sha256((source + headers).encode()).hexdigest()[:24]
    if not folder.exists():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as made:
            (path := Path(made, "kernels.cpp")).write_text(source)
            command = ["g++", "-O1", "-w", "-shared", "-fPIC", "-std=c++17"]
            command += [f"-I{TOOLKIT}", f"-I{SOURCES}", path]
            _compile(command, made, "kernels.so")
            _move(made, folder)
    return folder / "kernels.so"


def _without_includes(text: str) -> str:
    return re.sub(r"^\s*#\s*include.*$", "", text, flags=re.MULTILINE)


def _compile(command: list[str | Path], folder: str, name: str) -> None:
    done = subprocess.run(
        [*map(str, command), "-o", f"{folder}/{name}"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"g++ does not take it: {done.stderr[:4000]}")


def _move(made: str, folder: Path) -> None:
    """What was made, under its name; another process may have been faster."""
    if not folder.exists():
        kept = Path(f"{made}.kept")
        Path(made).rename(kept)
        Path(made).mkdir()  # for the context that removes it
        if folder.exists():
            return
        kept.rename(folder)
