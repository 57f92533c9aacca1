"""The CPU target: exact integer block dot products where codes are small integers, float FMA
elsewhere.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lbcompiler.errors import ConfigError
from lbcompiler.ir.dump import Dump
from lbcompiler.ir.model import Dim
from lbcompiler.passes.pack_weights import PackWeights
from lbcompiler.target import Target
from lbcompiler.targets.cpu.isa import Isa, detect, isa_named
from lbcompiler.targets.cpu.kernels import kernel_for
from lbcompiler.targets.cpu.lower import LowerLinears


def cpu(variant: str = "") -> Target:
    """The target for an ISA (`avx512_vnni`, `avx2`, `generic`), or for the machine this runs on."""
    isa = isa_named(variant) if variant else detect()
    kernels = partial(kernel_for, isa=isa)
    return Target(
        name="cpu",
        isa=isa.name,
        supports=lambda weight, act: "",  # every pair has a kernel, integer or float
        passes=(PackWeights(kernels), LowerLinears(kernels)),
        build=partial(_build, isa),
    )


def _build(isa: Isa, module: Any, dims: Sequence[Dim], library: Path, dump: Dump) -> None:
    from lbcompiler.targets.cpu.build import build

    executable = build(module, isa.tvm_target(), dims, dump)
    try:
        executable.export_library(str(library))
    except Exception as error:  # the linker's, under several names
        raise ConfigError(
            f"the generated code could not be linked into {library.name}: "
            f"{str(error).strip().splitlines()[-1]}. Is there space on the disk, and a C++ "
            "compiler? lbc doctor looks"
        ) from None
