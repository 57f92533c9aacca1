"""What every target's host code has in common: it is a program of TVM's virtual machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from lbcompiler.errors import ConfigError, last_line
from lbcompiler.files import temporary_folder
from lbcompiler.ir.model import Dim
from lbcompiler.targets.share_views import ShareViews


def bound_dimensions(module: Any, dims: Sequence[Dim]) -> Any:
    """Say how large each dynamic dimension may grow, so that the memory plan can be made now."""
    upper = {dim.name: dim.high for dim in dims if dim.high is not None}
    if not upper:
        return module
    bounded = module.clone() if hasattr(module, "clone") else module
    for variable, function in module.functions_items():
        if isinstance(function, relax.Function):
            bounded.update_func(variable, function.with_attr("tir_var_upper_bound", upper))
    return bounded


def plan_memory(module: Any) -> Any:
    """Calls of PrimFuncs -> calls of the virtual machine, with one storage for what does not live
    at once. Within the target's scope.
    """
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        ShareViews,
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),  # of what the last one has added
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)(module)


@dataclass(frozen=True)
class Built:
    """A program of the virtual machine, and object files with functions that it calls."""

    executable: Any
    objects: Sequence[bytes] = ()

    def link(self, library: Path) -> None:
        """Write the library. Raises ConfigError where the linker cannot."""
        try:
            with temporary_folder() as folder:
                files = [folder / f"{number}.o" for number in range(len(self.objects))]
                for file, code in zip(files, self.objects, strict=True):
                    file.write_bytes(code)
                self.executable.export_library(str(library), addons=[str(file) for file in files])
        except Exception as error:  # the linker's, under several names
            raise ConfigError(
                f"the generated code could not be linked into {library.name}: {last_line(error)}. "
                "Is there space on the disk, and a C++ compiler? lbc doctor looks"
            ) from None

    def load(self, device: Any) -> Any:
        """The virtual machine with the program, in this process. Raises ConfigError as `link`, and
        where the folder for temporary files is none to load from.
        """
        try:
            with temporary_folder() as folder:
                library = folder / "program.so"
                self.link(library)
                module = tvm.runtime.load_module(str(library))
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the generated code could not be loaded: {last_line(error)}. Set TMPDIR to a "
                "folder that can be written and that programs may be loaded from"
            ) from None
        return relax.VirtualMachine(module, device)
