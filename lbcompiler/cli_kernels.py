"""`lbc inspect --kernels`: what every kernel of a GPU takes, and what its code is made of."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lbcompiler.cli_show import print_json, print_line, print_table

if TYPE_CHECKING:
    from lbcompiler.artifact import Artifact, KernelRecord

COLUMNS = (
    "kernel",
    "arch",
    "registers",
    "spills",
    "shared",
    "threads",
    "occupancy",
    "instructions",
)


def kernels(artifact: "Artifact", as_json: bool) -> None:
    """A row each; with `--json` the manifest, its kernels with their instructions."""
    found = instructions(artifact)
    rows = [
        {**kernel.model_dump(), "instructions": found.get((kernel.arch, kernel.name))}
        for kernel in artifact.manifest.kernels
    ]
    if as_json:
        print_json({**artifact.manifest.model_dump(mode="json"), "kernels": rows})
        return
    if not rows:
        print_line(f"{artifact.path} has no kernels of a GPU: it is for the processor")
        return
    print_table(COLUMNS, [_row(row) for row in rows])
    print_line(f"{len(rows)} kernels for {', '.join(artifact.manifest.isas)}")
    if not found:
        print_line(
            "their instructions are shown where cuobjdump and nvdisasm are: pip install "
            "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        )


def instructions(artifact: "Artifact") -> dict[tuple[str, str], list[str]]:
    """(architecture, kernel) -> the instructions for tensor cores and memory in its code."""
    if artifact.manifest.target.name == "cpu":
        return {}
    from lbcompiler.artifact import kernels_file
    from lbcompiler.targets.cuda.device_code import DeviceCode
    from lbcompiler.targets.cuda.resources import instructions_of_all

    found: dict[tuple[str, str], list[str]] = {}
    for isa in artifact.manifest.isas:
        code = DeviceCode.read(artifact.path / kernels_file(isa))
        for counts in instructions_of_all(list(code.cubins.values())):
            found.update({(isa, name): list(held) for name, held in counts.items()})
    return found


def spills(records: Iterable["KernelRecord"]) -> list[str]:
    """A warning for every kernel that spills."""
    return [
        f"the kernel {kernel.name} for {kernel.arch} needs more registers than there are "
        f"and spills {kernel.spill_bytes} bytes a thread to memory"
        for kernel in records
        if kernel.spill_bytes
    ]


def _row(row: dict[str, Any]) -> tuple[object, ...]:
    return (
        row["name"],
        row["arch"],
        row["registers"],
        row["spill_bytes"] or None,
        row["shared_bytes"] or None,
        row["threads"],
        f"{row['occupancy']:.0%}",
        " ".join(row["instructions"] or ()),
    )
