import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.code_cache import ABANDONED_S
from lbcompiler.targets.cuda import cache
from lbcompiler.targets.cuda.arch import arch_named
from lbcompiler.targets.cuda.cache import CACHE, compile_all, compile_cached
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


def test_nothing_but_entries_is_left(nvcc: Counting) -> None:
    compile_all(["one", "two", "one"], SM_80, nvcc)
    assert len([*CACHE.folder.iterdir()]) == 2


def test_another_architecture_compiler_or_switch_is_another_entry(
    nvcc: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_cached("one", SM_80, nvcc)
    compile_cached("one", arch_named("sm_90"), nvcc)
    compile_cached("one", SM_80, type(nvcc)(nvcc.path, "13.0.89"))
    monkeypatch.setattr(cache, "FLAGS", ("-O1",))
    compile_cached("one", SM_80, nvcc)
    assert nvcc.texts == ["one"] * 4


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"not json\ncode"])
def test_a_damaged_entry_is_compiled_again(nvcc: Counting, damage: bytes) -> None:
    whole = compile_cached("one", SM_80, nvcc)
    (entry,) = CACHE.folder.iterdir()
    held = entry.read_bytes()
    for text in (damage, held[:-1], held[:-1] + b"?"):
        entry.write_bytes(text)
        assert compile_cached("one", SM_80, nvcc) == whole
    assert nvcc.texts == ["one"] * 4


def test_the_least_recently_used_go_first(nvcc: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_all(["one", "two", "tri"], SM_80, nvcc)
    size = {entry.stat().st_size for entry in CACHE.folder.iterdir()}
    assert len(size) == 1
    for age, text in enumerate(("tri", "two", "one")):
        set_age(text, age, nvcc)
    compile_cached("one", SM_80, nvcc)  # the oldest, used now
    monkeypatch.setenv(CACHE.variable, str(3.5 * size.pop() / 2**20))
    compile_all(["for"], SM_80, nvcc)
    assert len([*CACHE.folder.iterdir()]) == 3
    for text in ("one", "tri", "for"):
        compile_cached(text, SM_80, nvcc)
    assert sorted(nvcc.texts) == ["for", "one", "tri", "two"]
    compile_cached("two", SM_80, nvcc)
    assert nvcc.texts[4:] == ["two"]


def set_age(text: str, hours: float, nvcc: Counting) -> None:
    path = CACHE.path_of((nvcc.version, SM_80.name, *cache.FLAGS, text))
    then = time.time() - 3600 * hours
    os.utime(path, (then, then))


def test_a_limit_of_nothing_keeps_nothing(nvcc: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE.variable, "0")
    assert [c.code for c in compile_all(["one", "two"], SM_80, nvcc)] == [b"one\n!", b"two\n!"]
    assert not [*CACHE.folder.iterdir()]


@pytest.mark.parametrize("said", ["much", "-1", "inf", "nan"])
def test_a_limit_that_is_none(nvcc: Counting, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(CACHE.variable, said)
    with pytest.raises(ConfigError, match=f"{CACHE.variable} is '{said}'.*MiB"):
        compile_all(["one"], SM_80, nvcc)
    assert nvcc.texts == []


def test_what_is_being_written_stays_and_what_was_given_up_goes(nvcc: Counting) -> None:
    compile_all(["one"], SM_80, nvcc)
    new, old = (CACHE.folder / f".{name}.cubin.x" for name in ("new", "old"))
    for path, age in ((new, 0), (old, 2 * ABANDONED_S)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    CACHE.prune(1 << 20)
    assert [path.exists() for path in (new, old)] == [True, False]


def test_several_prune_and_compile_at_once(nvcc: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE.variable, "0.0005")  # two entries
    texts = [str(number) for number in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: compile_all(texts, SM_80, nvcc), range(4)):
            assert [cubin.code for cubin in made] == [f"{text}\n!".encode() for text in texts]
    assert sum(entry.stat().st_size for entry in CACHE.folder.iterdir()) <= 0.0005 * 2**20


def test_a_folder_that_cannot_be_written_costs_time_only(
    nvcc: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compile_cached("one", SM_80, nvcc).code == b"one\n!"


def test_an_old_compiler_is_refused_before_any_text(nvcc: Counting) -> None:
    old = type(nvcc)(nvcc.path, "12.0.76")
    with pytest.raises(ConfigError, match="sm_120a"):
        compile_all(["one"], arch_named("sm_120a"), old)
    assert nvcc.texts == []
