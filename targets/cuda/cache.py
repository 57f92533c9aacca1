"""Compiled kernels by the hash of what they are made from, in the user's cache folder.

nvcc takes half a second and more for a kernel; a model's second compilation, and every model with
the same layers, takes none of it. An entry is one file that appears whole, and says the hash of
what it holds: a damaged one is compiled again. The folder is kept to a size (`prune.py`).
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lbcompiler.files import appearing
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.prune import SUFFIX, limit_bytes, prune, touch
from lbcompiler.targets.cuda.resources import Usage, usage_of
from lbcompiler.targets.cuda.toolchain import FLAGS, Nvcc

Done = Callable[[int, int], None]  # (texts compiled, of how many)


@dataclass(frozen=True)
class Cubin:
    """Machine code of one architecture, and what each kernel in it takes."""

    code: bytes
    usage: dict[str, Usage]


def cache_folder() -> Path:
    """Where compiled kernels are kept (XDG)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "lbcompiler" / "cuda"


def compile_all(
    sources: Sequence[str], arch: Arch, nvcc: Nvcc, done: Done = lambda _done, _total: None
) -> list[Cubin]:
    """Each CUDA text as a cubin, from the cache or from nvcc, as many at once as there are cores.

    Raises ConfigError for an nvcc that is too old and a limit of the cache that is no number,
    CudaCompileError for text that it refuses.
    """
    nvcc.check(arch)
    limit = limit_bytes()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cubins: list[Cubin] = []
    with ThreadPoolExecutor(cores or 1) as pool:
        work = [pool.submit(compile_cached, source, arch, nvcc) for source in sources]
        try:
            for item in work:
                cubins.append(item.result())
                done(len(cubins), len(work))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    prune(cache_folder(), limit)
    return cubins


def compile_cached(source: str, arch: Arch, nvcc: Nvcc) -> Cubin:
    """One text as a cubin. A cache that cannot be written costs time, nothing else."""
    path = cache_folder() / f"{_key(source, arch, nvcc)}{SUFFIX}"
    held = _read(path)
    if held is not None:
        touch(path)
        return held
    code, said = nvcc.compile(source, arch)
    cubin = Cubin(code, usage_of(said))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path) as partial:
            partial.write_bytes(_head(cubin) + b"\n" + code)
    except OSError:
        pass
    return cubin


def _key(source: str, arch: Arch, nvcc: Nvcc) -> str:
    parts = (nvcc.version, arch.name, *FLAGS, source)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _head(cubin: Cubin) -> bytes:
    usage = {name: held.to_json() for name, held in cubin.usage.items()}
    return json.dumps({"sha256": hashlib.sha256(cubin.code).hexdigest(), "usage": usage}).encode()


def _read(path: Path) -> Cubin | None:
    """An entry, None where there is none or it is damaged."""
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        said = json.loads(head)
        if said["sha256"] != hashlib.sha256(code).hexdigest():
            return None
        return Cubin(code, {name: Usage(**held) for name, held in said["usage"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None
