"""Compiled code on disk: found again, whole or not at all, and no more of it than asked for."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.targets.code_cache import ABANDONED_S, CodeCache, Entry
from lbcompiler.targets.cores import at_once

CACHE = CodeCache("test", ".code")
HOUR_S = 3600


class Compiler:
    """Compiles by adding a letter, and counts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, text: str) -> Entry:
        def make() -> Entry:
            self.texts.append(text)
            return Entry(f"{text}\n!".encode(), {"length": len(text)})

        return CACHE.held((text,), make)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return Compiler()


def entries() -> list[Path]:
    return [*CACHE.folder.iterdir()] if CACHE.folder.exists() else []


def test_a_text_is_compiled_once_and_nothing_but_its_entry_is_left(compiler: Compiler) -> None:
    first, again = (compiler("one") for _ in range(2))
    assert first == again == Entry(b"one\n!", {"length": 3})
    assert compiler.texts == ["one"]
    assert entries() == [CACHE.path_of(("one",))]


def test_an_entry_has_the_permissions_of_any_file(compiler: Compiler) -> None:
    before = os.umask(0o027)
    try:
        at_once(compiler, [str(number) for number in range(200)])
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {entry.stat().st_mode & 0o777 for entry in entries()} == {0o640}


@pytest.mark.parametrize("damage", [b"", b"{}\n", b"not json\ncode", b"[]\n", b'{"facts": null}\n'])
def test_a_damaged_entry_is_compiled_again(compiler: Compiler, damage: bytes) -> None:
    whole = compiler("one")
    (entry,) = entries()
    held = entry.read_bytes()
    for text in (damage, held[:-1], held[:-1] + b"?", held.replace(b"3", b"4", 1)):
        entry.write_bytes(text)
        assert compiler("one") == whole
    assert compiler.texts == ["one"] * 5


def test_what_is_known_of_the_code_is_part_of_what_is_hashed(compiler: Compiler) -> None:
    compiler("one")
    (entry,) = entries()
    head, _, code = entry.read_bytes().partition(b"\n")
    for facts in ([1], "x", {"length": 4}):
        said = json.loads(head) | {"facts": facts}
        entry.write_bytes(json.dumps(said).encode() + b"\n" + code)
        assert compiler("one").facts == {"length": 3}


def test_the_least_recently_used_go_first(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once(compiler, ["one", "two", "tri"])
    (size,) = {entry.stat().st_size for entry in entries()}
    for age, text in enumerate(("tri", "two", "one")):
        os.utime(CACHE.path_of((text,)), (time.time() - HOUR_S * age,) * 2)
    compiler("one")  # the oldest, used now
    monkeypatch.setenv(CACHE.variable, str(3.5 * size / 2**20))
    compiler("for")
    CACHE.prune()
    assert set(entries()) == {CACHE.path_of((text,)) for text in ("for", "one", "tri")}


def test_a_limit_of_nothing_reads_and_keeps_nothing(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler("one")
    monkeypatch.setenv(CACHE.variable, "0")
    assert [compiler(text).code for text in ("one", "two")] == [b"one\n!", b"two\n!"]
    assert compiler.texts == ["one", "one", "two"]
    CACHE.prune()
    assert entries() == []


@pytest.mark.parametrize("said", ["much", "-1", "inf", "nan"])
def test_a_limit_that_is_none(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv(CACHE.variable, said)
    with pytest.raises(ConfigError, match=f"LBC_TEST_CACHE_MIB is '{said}'.*MiB"):
        compiler("one")
    assert compiler.texts == []


def test_what_is_being_written_stays_and_what_was_given_up_goes(compiler: Compiler) -> None:
    compiler("one")
    new, old = (CACHE.folder / f".{name}.code.x" for name in ("new", "old"))
    for path, age in ((new, 0), (old, 2 * ABANDONED_S)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    CACHE.prune()
    assert [path.exists() for path in (new, old)] == [True, False]


def test_several_prune_and_compile_at_once(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE.variable, "0.0005")  # a few entries
    texts = [str(number) for number in range(40)]

    def work(_: int) -> list[bytes]:
        made = at_once(compiler, texts)
        CACHE.prune()
        return [entry.code for entry in made]

    with ThreadPoolExecutor(4) as pool:
        for codes in pool.map(work, range(4)):
            assert codes == [f"{text}\n!".encode() for text in texts]
    CACHE.prune()
    assert sum(entry.stat().st_size for entry in entries()) <= 0.0005 * 2**20


def test_a_folder_that_cannot_be_written_costs_time_only(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiler("one").code == b"one\n!"
