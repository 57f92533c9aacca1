"""What this machine and installation can do, and what is wrong with them: `lbc doctor`.

Nothing here may fail: a broken installation is what the page is for. What lbcompiler needs is read
from its own package metadata, so that a pin is written down in pyproject.toml alone.
"""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

CPU_INFO = Path("/proc/cpuinfo")
VECTOR_FLAGS = ("avx", "amx", "fma", "f16c")
PATIENCE_S = 10  # for a tool to say its version
DEVELOPMENT = "test"  # the extra that no user needs
WHY = {
    "apache-tvm": "its printed IR and registration API change from release to release",
    "apache-tvm-ffi": "another version has another C++ ABI than the TVM wheel, and crashes in it",
}


@dataclass(frozen=True)
class Machine:
    system: str
    architecture: str
    cpu: str
    vector_flags: list[str]
    cores: int
    usable_cores: int  # what this process may run on: the number of threads by default
    memory_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class InstructionSet:
    name: str
    runs_here: bool
    is_chosen: bool


@dataclass(frozen=True)
class Tool:
    """`path` and `version` are empty where it is missing."""

    name: str
    purpose: str
    path: str = ""
    version: str = ""


@dataclass(frozen=True)
class Package:
    """`extra` is empty for what is always needed; `found` is empty where it is missing."""

    name: str
    wanted: str
    found: str
    is_ok: bool
    extra: str
    install: str


@dataclass(frozen=True)
class Checkup:
    version: str
    machine: Machine
    instruction_sets: list[InstructionSet]
    tools: list[Tool]
    gpus: list[str]
    packages: list[Package]
    problems: list[str] = field(default_factory=list)


def examine() -> Checkup:
    """Look at everything; takes a second or two, because TVM is loaded."""
    problems: list[str] = []
    packages = _packages(problems)
    instruction_sets = _instruction_sets(problems)
    tools = [
        _tool("C++ compiler", _compiler(), "links generated code"),
        _tool("nvcc", _nvcc(), "compiles CUDA code"),
        _tool("nvidia-smi", shutil.which("nvidia-smi"), "lists GPUs"),
    ]
    if not tools[0].path:
        problems.append(
            "there is no C++ compiler, which generated code is linked with: install g++ or clang"
        )
    return Checkup(
        version=_version("lbcompiler"),
        machine=_machine(),
        instruction_sets=instruction_sets,
        tools=tools,
        gpus=_gpus(tools[2].path),
        packages=packages,
        problems=problems,
    )


def _machine() -> Machine:
    try:
        import psutil

        memory = psutil.virtual_memory()
        total, available = int(memory.total), int(memory.available)
    except ImportError:  # listed among the packages
        total = available = 0
    return Machine(
        system=platform.platform(),
        architecture=platform.machine(),
        cpu=_cpu_info("model name") or platform.processor() or platform.machine(),
        vector_flags=[f for f in _cpu_info("flags").split() if f.startswith(VECTOR_FLAGS)],
        cores=os.cpu_count() or 1,
        usable_cores=_usable_cores(),
        memory_bytes=total,
        available_bytes=available,
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_info(key: str) -> str:
    """Of the first core as Linux lists it; empty elsewhere."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _instruction_sets(problems: list[str]) -> list[InstructionSet]:
    try:
        from lbcompiler.targets.cpu import isa

        host, chosen = isa.detect(), isa.preferred()
        return [InstructionSet(i.name, i.runs_on(host), i is chosen) for i in isa.ISAS]
    except Exception as error:  # a broken TVM fails in many ways
        problems.append(f"TVM cannot be loaded ({error}): nothing will compile or run")
        return []


def _compiler() -> str | None:
    """The one that TVM would take."""
    try:
        from tvm.support.cc import get_cc

        name = get_cc()
        return None if name is None else shutil.which(name)
    except Exception:  # a broken TVM is reported by _instruction_sets
        return shutil.which("g++") or shutil.which("c++")


def _nvcc() -> str | None:
    """The one that `lbc compile` would take; not in need of PATH."""
    try:
        from lbcompiler.targets.cuda.toolchain import find_tool

        path = find_tool("nvcc")
        return None if path is None else str(path)
    except Exception:  # a broken TVM is reported by _instruction_sets
        return shutil.which("nvcc")


def _tool(name: str, path: str | None, purpose: str) -> Tool:
    if path is None:
        return Tool(name, purpose)
    lines = _said_by(path, "--version")
    release = [line for line in lines if "release" in line or "version" in line.lower()]
    return Tool(name, purpose, path, (release or lines or [""])[0])


def _gpus(nvidia_smi: str) -> list[str]:
    if not nvidia_smi:
        return []
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    return _said_by(nvidia_smi, query, "--format=csv,noheader")


def _said_by(*command: str) -> list[str]:
    """The lines a command prints; none where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] * (
        done.returncode == 0
    )


def _packages(problems: list[str]) -> list[Package]:
    try:
        required = [Requirement(text) for text in metadata.requires("lbcompiler") or []]
    except metadata.PackageNotFoundError:
        problems.append("lbcompiler runs from a folder and is not installed: pip install .")
        return []
    extras = metadata.metadata("lbcompiler").get_all("Provides-Extra") or []
    packages = [
        _package(requirement, extra)
        for extra in ("", *(e for e in extras if e != DEVELOPMENT))
        for requirement in required
        if _belongs(requirement, extra)
    ]
    for package in packages:
        wrong = not package.is_ok and (not package.extra or package.found)
        if wrong:
            reason = WHY.get(package.name, f"{package.extra or 'lbcompiler'} needs it")
            found = package.found or "not installed"
            problems.append(
                f"{package.name} is {found}, wanted {package.wanted or 'any'} ({reason}): "
                f"{package.install}"
            )
    return packages


def _belongs(requirement: Requirement, extra: str) -> bool:
    """Whether it is needed always (`extra` empty), or just for that extra."""
    marker = requirement.marker
    if marker is None:
        return not extra
    return marker.evaluate({"extra": extra}) and (not extra or not marker.evaluate({"extra": ""}))


def _package(requirement: Requirement, extra: str) -> Package:
    found, wanted = _version(requirement.name), str(requirement.specifier)
    return Package(
        name=requirement.name,
        wanted=wanted,
        found=found,
        is_ok=bool(found) and requirement.specifier.contains(found, prereleases=True),
        extra=extra,
        install=f"pip install 'lbcompiler[{extra}]'"
        if extra
        else f"pip install '{requirement.name}{wanted}'",
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
