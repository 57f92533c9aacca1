"""A cubin for every CUDA text, from the cache or from nvcc."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from lbcompiler.targets.code_cache import CodeCache, Entry
from lbcompiler.targets.cores import Done, at_once
from lbcompiler.targets.cuda.arch import Arch
from lbcompiler.targets.cuda.resources import Usage, usage_of
from lbcompiler.targets.cuda.toolchain import FLAGS, Nvcc

CACHE = CodeCache("cuda", ".cubin")


@dataclass(frozen=True)
class Cubin:
    """Machine code of one architecture, and what each kernel in it takes."""

    code: bytes
    usage: dict[str, Usage]


def compile_all(
    sources: Sequence[str], arch: Arch, nvcc: Nvcc, done: Done = lambda _done, _total: None
) -> list[Cubin]:
    """Each CUDA text as a cubin, as many at once as there are cores.

    Raises ConfigError for an nvcc that is too old and a limit of the cache that is no number,
    CudaCompileError for text that it refuses.
    """
    nvcc.check(arch)
    cubins = at_once(lambda source: compile_cached(source, arch, nvcc), sources, done)
    CACHE.prune()
    return cubins


def compile_cached(source: str, arch: Arch, nvcc: Nvcc) -> Cubin:
    """One text as a cubin."""

    def compiled() -> Entry:
        code, said = nvcc.compile(source, arch)
        return Entry(code, {name: held.to_json() for name, held in usage_of(said).items()})

    entry = CACHE.held(parts_of(source, arch, nvcc), compiled)
    return Cubin(entry.code, {name: Usage(**held) for name, held in entry.facts.items()})


def parts_of(source: str, arch: Arch, nvcc: Nvcc) -> tuple[str, ...]:
    """What a cubin, and what is kept of it, are made from."""
    known = ",".join(field.name for field in fields(Usage))
    return nvcc.version, arch.name, *FLAGS, known, source
