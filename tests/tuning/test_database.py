"""Databases that are fine, locked, damaged, foreign, of other versions, and exports of them."""

import json
import sqlite3
from pathlib import Path

import optuna
import pytest

from lbcompiler.errors import ConfigError
from lbcompiler.pipeline import silent
from lbcompiler.targets.cpu.processor import processor
from lbcompiler.tuning import database as databases
from lbcompiler.tuning.database import open_database, readable, versions
from lbcompiler.tuning.results import export, read_results
from lbcompiler.tuning.search import Limits, search
from lbcompiler.tuning.study import TuningStudy
from tests.tuning.stand_in import SMALL, StandIn, subject

FASTEST = {"small_columns": 2}
OTHERS = {**versions(), "lbcompiler": "0.0.1"}


def tuned(path: Path, **changes: object) -> None:
    """One result in a database: a column for small M is fastest."""
    facts = subject(SMALL, **{"processor": processor(), **changes})
    study = TuningStudy(open_database(path), SMALL, facts)
    search(study, StandIn(lambda c: 0.5 if c.small_columns == 2 else 1.0), Limits(), silent)


def test_results_of_this_machine_go_first_and_other_versions_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    tuned(path, processor="another")
    tuned(path)
    tuned(path, versions=OTHERS)
    optuna.create_study(storage=open_database(path), study_name="somebody's own")
    found = read_results(path, "cpu")
    assert [source.name for source in found.sources] == [str(path), f"{path} (another)"]
    assert [len(source.results) for source in found.sources] == [1, 1]
    assert found.sources[0].results[0].config == FASTEST
    assert (found.count, found.other_versions) == (2, 1)


def test_an_export_says_the_same(tmp_path: Path) -> None:
    path, table = tmp_path / "t.db", tmp_path / "t.json"
    tuned(path)
    tuned(path, processor="another")
    tuned(path, isa="generic")
    assert export(open_database(path), table, processor(), "avx2") == 1
    found = read_results(table, "cpu")
    assert found.sources[0].results == read_results(path, "cpu").sources[0].results[:1]
    assert json.loads(table.read_text())["processor"] == processor()
    held = json.loads(table.read_text())
    table.write_text(json.dumps({**held, "versions": OTHERS}))
    assert (read_results(table, "cpu").count, read_results(table, "cpu").other_versions) == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the tuning table"),
        ('{"processor": "x"}', "cannot read the tuning table"),
        ('{"table_version": 9, "processor": "x", "versions": {}, "results": []}', "version 9"),
    ],
)
def test_a_bad_export(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_results(tmp_path / "t.json", "cpu")


def test_a_missing_database_is_not_made_by_reading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no tuning database"):
        read_results(tmp_path / "gone.db", "cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", [b"no database at all" * 100, None])
def test_a_damaged_database(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "t.db"
    tuned(path)
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:2000] + b"\xff" * (len(whole) - 2000))
    with pytest.raises(ConfigError, match=r"t\.db is damaged .*move it away"):
        read_results(path, "cpu")


def test_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "PATIENCE_S", 0.1)
    path = tmp_path / "t.db"
    tuned(path)
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="is locked by another process"):
        read_results(path, "cpu")
    holder.rollback()
    storage = open_database(path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ConfigError, match="is locked"), readable(path):
        TuningStudy(storage, SMALL, subject(SMALL))
    holder.close()


def test_a_database_of_another_optuna(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    tuned(path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE version_info SET schema_version = 99")
        connection.execute("UPDATE alembic_version SET version_num = 'v99'")
    with pytest.raises(ConfigError, match="another version of optuna"):
        read_results(path, "cpu")


def test_a_driver_that_is_missing_and_a_password_that_is_not_shown() -> None:
    with pytest.raises(ConfigError, match=r"me:\*\*\*@host/x needs a driver") as raised:
        open_database("oracle://me:secret@host/x")
    assert "secret" not in str(raised.value)


def test_the_default_lies_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    open_database(None)
    assert (tmp_path / "lbcompiler" / "tuning.db").is_file()
