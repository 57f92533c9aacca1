"""A GPU that is not there: an artifact for CUDA, run through our runtime and TVM's on a driver and
a CUDA runtime of ours (`fake_cuda/`), its kernels emulated on the processor (`tests.emulator`).

What runs is the generated CUDA text of each kernel, compiled by g++ in place of nvcc; the host's
code, the memory plan and the launches are the artifact's own.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from lbcompiler.artifact import MANIFEST, sha256_of
from lbcompiler.targets.cuda.toolchain import find_nvcc, pip_folders
from tests.targets.cuda import fake_nvcc
from tests.targets.cuda.fake_nvcc import (
    FOLDER,
    ROOT,
    SOURCES,
    TOOLKIT,
    compile_command,
    image_of,
    move,
)


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


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python program on a machine with the GPU."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **machine(), **environment},
    )


def machine() -> dict[str, str]:
    """The environment of a process on a machine with the GPU, and without torch, which TVM takes a
    second to import.
    """
    before = {"LD_LIBRARY_PATH": fake_cuda(), "PYTHONPATH": ROOT / "tests/targets/cuda/no_torch"}
    return {name: f"{path}{os.pathsep}{os.environ.get(name, '')}" for name, path in before.items()}


def toolkit() -> dict[str, str]:
    """The environment of a process whose nvcc compiles for that GPU."""
    return {"CUDACXX": str(fake_nvcc.program()), "XDG_CACHE_HOME": str(FOLDER / "cache")}


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
        common = [f"-I{include}", f"-I{TOOLKIT}"]
        memory = SOURCES / "device_memory.cpp"
        driver = ["-Wl,-soname,libcuda.so.1", SOURCES / "driver.cpp", memory]
        compile_command(made, "libcuda.so.1", *common, *driver)
        named = ["-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={versions}"]
        beside = [f"-L{made}", "-l:libcuda.so.1"]  # which records what is captured
        compile_command(made, "libcudart.so.13", *common, *named, SOURCES / "runtime.cpp", *beside)
        move(made, folder)
    return folder
