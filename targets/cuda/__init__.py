"""The CUDA target: tensor cores on block-scaled codes, compiled for named architectures without a
GPU.
"""

import re
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
from lbcompiler.targets.configs import Source, Tuned, shipped
from lbcompiler.targets.cuda.arch import ARCHS, Arch, archs_named, best_for
from lbcompiler.targets.cuda.driver import Gpu, NoGpuError, first_gpu
from lbcompiler.targets.cuda.linears import linear_for
from lbcompiler.targets.cuda.lower import LowerLinears
from lbcompiler.targets.cuda.lower_attention import LowerAttention
from lbcompiler.targets.cuda.prologue_rows import PIECE
from lbcompiler.targets.cuda.rounding import RULES
from lbcompiler.targets.cuda.toolchain import find_nvcc


def cuda(variant: str = "", results: Sequence[Source] = ()) -> tuple[Target, ...]:
    """A target for each architecture named (`sm_80,sm_90a`), or for the GPU that is there.

    `results` of `lbc tune` go before those that are shipped.
    """
    if variant:
        return tuple(_target(arch, tuned_for(arch, "", results)) for arch in archs_named(variant))
    arch, gpu = _here()
    return (_target(arch, tuned_for(arch, gpu.name, results)),)


def tuned_for(arch: Arch, gpu: str, results: Sequence[Source] = ()) -> Tuned:
    """Where the configs of an architecture's kernels come from; `gpu` names the one that code is
    for, "" any that runs it.
    """
    names = [file_name(gpu), arch.name] if gpu else [arch.name]
    return Tuned((*results, *shipped("cuda", names)))


def file_name(gpu: str) -> str:
    """`NVIDIA H200` -> `nvidia_h200`."""
    return re.sub(r"\W+", "_", gpu.lower()).strip("_")


def _here() -> tuple[Arch, Gpu]:
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
    return arch, gpu


def _target(arch: Arch, tuned: Tuned) -> Target:
    kernels = partial(linear_for, arch=arch)
    return Target(
        name="cuda",
        isa=arch.name,
        supports=lambda weight, act: "",  # every pair has a kernel on the exact route
        passes=(
            FuseActivationQuantize(keeps_costly_rows=False),
            PackWeights(kernels),
            LowerLinears(kernels, tuned),
            LowerAttention(),
        ),
        build=partial(_build, arch),
        check=lambda: find_nvcc().check(arch),
        activation_rules=frozenset(chain.from_iterable(RULES.values())),
        largest_rotation=PIECE,
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
