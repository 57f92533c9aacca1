"""The checkup on this machine, and on machines that lack something."""

import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from lbcompiler import doctor
from lbcompiler.doctor import Package, examine
from lbcompiler.targets.cuda import toolchain
from lbcompiler.targets.cuda.toolchain import find_nvcc


def test_this_installation_is_well() -> None:
    found = examine()
    assert found.problems == []
    assert [i.is_chosen for i in found.instruction_sets].count(True) == 1
    assert all(i.runs_here for i in found.instruction_sets if i.is_chosen)
    assert found.machine.usable_cores <= found.machine.cores
    assert found.machine.memory_bytes > found.machine.available_bytes > 0
    packages = {p.name: p for p in found.packages}
    assert packages["apache-tvm-ffi"].is_ok
    assert packages["torch"].extra == "torch"
    assert "pytest" not in packages


def without(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend other versions (None: not installed), by name with _ for -."""
    real = metadata.version

    def version(name: str) -> str:
        given = versions.get(name.replace("-", "_"), "")
        if given is None:
            raise metadata.PackageNotFoundError(name)
        return given or real(name)

    monkeypatch.setattr(metadata, "version", version)


def packages(problems: list[str]) -> dict[str, Package]:
    return {p.name: p for p in doctor._packages(problems)}


def test_the_pin_of_tvm_ffi_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, apache_tvm_ffi="0.1.15.post2")
    problems: list[str] = []
    assert not packages(problems)["apache-tvm-ffi"].is_ok
    assert len(problems) == 1
    assert "0.1.15.post2, wanted ==0.1.14.post1" in problems[0]
    assert "crashes" in problems[0]
    assert "pip install 'apache-tvm-ffi==0.1.14.post1'" in problems[0]


def test_a_missing_need_is_a_problem_and_a_missing_extra_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without(monkeypatch, rich=None, torch=None)
    problems: list[str] = []
    found = packages(problems)
    assert found["torch"].found == ""
    assert found["torch"].install == "pip install 'lbcompiler[torch]'"
    assert len(problems) == 1
    assert problems[0].startswith("rich is not installed")


def test_a_wrong_extra_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, torch="1.0")
    problems: list[str] = []
    packages(problems)
    assert len(problems) == 1
    assert problems[0].startswith("torch is 1.0")


def test_a_build_of_the_wanted_version_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = packages([])["torch"].wanted.removeprefix("==")
    without(monkeypatch, torch=f"{wanted}+cu130")
    assert packages([])["torch"].is_ok


def test_not_installed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(_name: str) -> list[str]:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", requires)
    problems: list[str] = []
    assert packages(problems) == {}
    assert "pip install ." in problems[0]


def test_a_tvm_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lbcompiler.targets.cpu", None)
    problems: list[str] = []
    assert doctor._instruction_sets(problems) == []
    assert "TVM cannot be loaded" in problems[0]


def test_no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(toolchain, "_places", lambda _: iter(()))
    found = examine()
    assert [tool.path for tool in found.tools] == ["", "", ""]
    assert found.gpus == []
    assert any("no C++ compiler" in problem for problem in found.problems)


def executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_tools_say_their_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path / "nvidia-smi", 'echo "NVIDIA H200, 9.0, 143771 MiB, 580.1"')
    executable(tmp_path / "nvcc", 'echo "nvcc: Cuda"; echo "Cuda compilation tools, release 13.0"')
    executable(tmp_path / "broken", "echo usage; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = examine()
    assert found.gpus == ["NVIDIA H200, 9.0, 143771 MiB, 580.1"]
    assert {t.name: t.version for t in found.tools}[
        "nvcc"
    ] == "Cuda compilation tools, release 13.0"
    broken = doctor._tool("broken", str(tmp_path / "broken"), "")
    assert (broken.path, broken.version) == (str(tmp_path / "broken"), "")


def test_nvcc_is_the_one_that_compiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of pip's packages is on nobody's PATH."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "nvcc", 'echo "Cuda compilation tools, release 13.0, V13.0.88"')
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setattr(toolchain, "pip_folders", lambda: [tmp_path])
    monkeypatch.setattr(toolchain.shutil, "which", lambda _: None)
    assert doctor._nvcc() == str(find_nvcc().path) == str(tmp_path / "bin" / "nvcc")
    monkeypatch.setattr(toolchain, "find_tool", lambda _: None)
    assert doctor._nvcc() is None


def test_a_tool_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    executable(tmp_path / "slow", "exec sleep 5")
    monkeypatch.setattr(doctor, "PATIENCE_S", 0.1)
    assert doctor._said_by(str(tmp_path / "slow")) == []


def test_a_system_without_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CPU_INFO", tmp_path / "gone")
    machine = doctor._machine()
    assert machine.cpu
    assert machine.vector_flags == []
