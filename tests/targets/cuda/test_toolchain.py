from pathlib import Path

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cuda import toolchain
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.toolchain import CudaCompileError, Nvcc, find_nvcc
from tests.targets.cuda import needs

EMPTY = 'extern "C" __global__ void nothing() {}\n'


def write_nvcc(folder: Path, text: str) -> Path:
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No toolkit at any of the usual places."""
    monkeypatch.setattr(toolchain, "_places", lambda name: iter([Path("/nonexistent", name)]))


@pytest.mark.usefixtures("nowhere")
def test_without_nvcc() -> None:
    with pytest.raises(ConfigError, match=r"needs nvcc.*pip install 'lbcompiler\[cuda\]'"):
        find_nvcc()


def test_the_one_that_is_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nvcc(tmp_path, "echo 'Cuda compilation tools, release 12.4, V12.4.131'")
    monkeypatch.setenv("CUDACXX", str(path))
    assert find_nvcc() == Nvcc(path, "12.4.131")
    assert find_nvcc().release == (12, 4)


@pytest.mark.parametrize("text", ["echo hello", "exit 1"])
def test_what_is_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CUDACXX", str(write_nvcc(tmp_path, text)))
    with pytest.raises(ConfigError, match="does not say which version"):
        find_nvcc()


@pytest.mark.parametrize(
    ("version", "arch", "is_enough"),
    [
        ("12.6.20", "sm_120a", False),
        ("12.8.61", "sm_120a", True),
        ("12.6.20", "sm_90a", True),
        ("11.8.89", "sm_90a", False),
        ("11.8.89", "sm_80", True),
        ("11.7.99", "sm_80", False),
        ("11.7.99", "sm_86", False),
    ],
)
def test_too_old_for_an_architecture(version: str, arch: str, is_enough: bool) -> None:
    nvcc = Nvcc(Path("nvcc"), version)
    if is_enough:
        nvcc.check(arch_named(arch))
        return
    with pytest.raises(ConfigError, match=f"CUDA {version}, which cannot compile for {arch}"):
        nvcc.check(arch_named(arch))


def test_packages_of_pip_are_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvcc(tmp_path, "echo 'release 13.5, V13.5.37'")
    (tmp_path / "bin").mkdir()
    (tmp_path / "nvcc").rename(tmp_path / "bin" / "nvcc")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(toolchain, "pip_folders", lambda: [tmp_path])
    assert find_nvcc().path == tmp_path / "bin" / "nvcc"


@needs.nvcc
def test_text_becomes_a_cubin() -> None:
    code, said = find_nvcc().compile(EMPTY, arch_named("sm_80"))
    assert code[:4] == b"\x7fELF"
    assert "Compiling entry function 'nothing' for 'sm_80'" in said


@needs.nvcc
def test_text_that_is_refused() -> None:
    with pytest.raises(CudaCompileError, match=r"refused .* for sm_80: .*error: .*undeclared"):
        find_nvcc().compile(
            'extern "C" __global__ void k() { undeclared = 1; }\n', arch_named("sm_80")
        )


def test_a_compiler_that_dies_without_words(tmp_path: Path) -> None:
    nvcc = Nvcc(write_nvcc(tmp_path, "exit 3"), "13.0.88")
    with pytest.raises(CudaCompileError, match="it said nothing"):
        nvcc.compile(EMPTY, arch_named("sm_80"))
