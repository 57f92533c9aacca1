"""The CUDA target: tensor cores on block-scaled codes, compiled for named architectures without a
GPU.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from lbcompiler.errors import ConfigError
from lbcompiler.ir.dump import Dump
from lbcompiler.ir.model import Dim
from lbcompiler.passes.fuse_activation_quantize import FuseActivationQuantize
from lbcompiler.passes.pack_weights import PackWeights
from lbcompiler.target import Files, KernelUse, Target
from lbcompiler.targets.cuda.arch import ARCHS, Arch, archs_named, best_for
from lbcompiler.targets.cuda.driver import NoGpuError, first_gpu
from lbcompiler.targets.cuda.linears import linear_for
from lbcompiler.targets.cuda.lower import LowerLinears
from lbcompiler.targets.cuda.lower_attention import LowerAttention
from lbcompiler.targets.cuda.rounding import RULES
from lbcompiler.targets.cuda.toolchain import find_nvcc


def cuda(variant: str = "", results: Sequence[Any] = ()) -> tuple[Target, ...]:
    """A target for each architecture named (`sm_80,sm_90a`), or for the GPU that is there.

    No results of tuning are taken yet.
    """
    archs = archs_named(variant) if variant else (_here(),)
    return tuple(_target(arch) for arch in archs)


def _here() -> Arch:
    known = ", ".join(arch.name for arch in ARCHS)
    say = f"say for which GPU to compile: --target cuda:ARCH, of {known}"
    try:
        gpu = first_gpu()
    except NoGpuError as error:
        raise ConfigError(
            f"target cuda takes the GPU of this machine, and {error}: {say}"
        ) from None
    arch = best_for(gpu.capability)
    if arch is None:
        number = ".".join(map(str, gpu.capability))
        raise ConfigError(
            f"{gpu.name} has compute capability {number}, which there are no kernels for: {say}"
        )
    return arch


def _target(arch: Arch) -> Target:
    kernels = partial(linear_for, arch=arch)
    return Target(
        name="cuda",
        isa=arch.name,
        supports=lambda weight, act: "",  # every pair has a kernel on the exact route
        passes=(
            FuseActivationQuantize(keeps_costly_rows=False),
            PackWeights(kernels),
            LowerLinears(kernels),
            LowerAttention(),
        ),
        build=partial(_build, arch),
        check=lambda: find_nvcc().check(arch),
        activation_rules=frozenset(chain.from_iterable(RULES.values())),
    )


def _build(
    arch: Arch, module: Any, dims: Sequence[Dim], files: Files, dump: Dump
) -> Sequence[KernelUse]:
    from lbcompiler.targets.cuda.build import build

    code = build(module, arch, dims, files.library, dump)
    code.save(files.device)
    if files.source is not None:
        files.source.mkdir(exist_ok=True)
        for name, text in code.sources.items():
            (files.source / f"{name}.cu").write_text(text)
    return [entry.use for entry in code.entries]
