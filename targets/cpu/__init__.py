"""The CPU target: exact integer block dot products where codes are small integers, float FMA
elsewhere.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

from lbcompiler.ir.dump import Dump
from lbcompiler.ir.model import Dim
from lbcompiler.passes.fuse_activation_quantize import FuseActivationQuantize
from lbcompiler.passes.pack_weights import PackWeights
from lbcompiler.target import Files, KernelUse, Target
from lbcompiler.targets.configs import Source, Tuned, shipped
from lbcompiler.targets.cpu.block_scales import RULES
from lbcompiler.targets.cpu.isa import ISAS, Isa, isa_named, preferred
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.lower import LowerLinears
from lbcompiler.targets.cpu.lower_attention import LowerAttention
from lbcompiler.targets.cpu.processor import processor


def cpu(variant: str = "", results: Sequence[Source] = ()) -> tuple[Target, ...]:
    """The one target for an ISA (`avx512_amx`, `avx512_vnni`, `avx2`, ...), or for this machine.

    `results` of `lbc tune` go before those that are shipped.
    """
    isa, tuned = tuned_for(variant, results)
    kernels = partial(kernel_for, isa=isa)
    target = Target(
        name="cpu",
        isa=isa.name,
        supports=lambda weight, act: "",  # every pair has a kernel, integer or float
        passes=(
            FuseActivationQuantize(),
            PackWeights(kernels),
            LowerLinears(kernels, tuned),
            LowerAttention(isa),
        ),
        build=partial(_build, isa),
        activation_rules=frozenset(chain.from_iterable(RULES.values())),
    )
    return (target,)


def tuned_for(variant: str = "", results: Sequence[Source] = ()) -> tuple[Isa, Tuned]:
    """The ISA, and where its kernels' configs come from: an ISA that is named is for any machine
    that has it, one that is not for this machine's processor.
    """
    isa = isa_named(variant) if variant else preferred()
    names = ([] if variant else [processor()]) + tables_of(isa)
    return isa, Tuned((*results, *shipped("cpu", names)))


def tables_of(isa: Isa) -> list[str]:
    """The names of its table and of those it shares kernels with (`LinearKernel.tuned_as`)."""
    return [other.name for other in ISAS if other.runs_on(isa)]


def _build(
    isa: Isa, module: Any, dims: Sequence[Dim], files: Files, dump: Dump
) -> Sequence[KernelUse]:
    from lbcompiler.targets.cpu.build import build

    build(module, isa.tvm_target(), dims, dump).link(files.library)
    return ()
