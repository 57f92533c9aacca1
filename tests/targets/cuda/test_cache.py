"""What a cubin is found by, and what is told of it."""

from pathlib import Path

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.cuda import cache
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.cache import compile_all, compile_cached
from lbcompiler.targets.cuda.resources import Usage
from lbcompiler.targets.cuda.toolchain import Nvcc

SM_80 = arch_named("sm_80")
SAID = """ptxas info    : Function properties for k
    0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 20 registers, used 1 barriers, 128 bytes smem, 376 bytes cmem[0]
"""


class Counting(Nvcc):
    """Compiles by adding a letter, and counts."""

    texts: list[str] = []  # noqa: RUF012  # a new class for every test

    def compile(self, source, arch):  # type: ignore[no-untyped-def]
        self.texts.append(source)
        return source.encode() + b"\n!", SAID


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = type("Made", (Counting,), {"texts": []})
    return made(Path("nvcc"), "13.0.88")  # type: ignore[no-any-return]


def test_a_text_is_compiled_once(nvcc: Counting) -> None:
    first, again = (compile_cached("one", SM_80, nvcc) for _ in range(2))
    assert first == again
    assert first.code == b"one\n!"
    assert first.usage == {"k": Usage(registers=20, spill_bytes=12, shared_bytes=128)}
    assert nvcc.texts == ["one"]


def test_another_architecture_compiler_or_switch_is_another_entry(
    nvcc: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_cached("one", SM_80, nvcc)
    compile_cached("one", arch_named("sm_90"), nvcc)
    compile_cached("one", SM_80, type(nvcc)(nvcc.path, "13.0.89"))
    monkeypatch.setattr(cache, "FLAGS", ("-O1",))
    compile_cached("one", SM_80, nvcc)
    assert nvcc.texts == ["one"] * 4


def test_an_old_compiler_is_refused_before_any_text(nvcc: Counting) -> None:
    old = type(nvcc)(nvcc.path, "12.0.76")
    with pytest.raises(ConfigError, match="sm_120a"):
        compile_all(["one"], arch_named("sm_120a"), old)
    assert nvcc.texts == []
