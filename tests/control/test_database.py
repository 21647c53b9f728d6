"""The file: how it is opened, whom it is shared with, and what is said when it cannot be used."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.control.database import WAL_BYTES_MAX, Database, StoreError

TABLES = "CREATE TABLE numbers (n INTEGER); CREATE TABLE words (word TEXT);"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    database = opened(path)
    yield database
    database.close()


def opened(path: Path, schema: int = 1) -> Database:
    return Database.open(path, schema, TABLES, busy_wait_s=0.05, lock_wait_s=0.05)


def test_a_commit_is_flushed_to_the_disk(database):
    """A write-ahead log, flushed at every commit, that does not grow for ever."""
    assert database.rows("PRAGMA journal_mode") == [("wal",)]
    assert database.rows("PRAGMA synchronous") == [(2,)]
    assert database.rows("PRAGMA journal_size_limit") == [(WAL_BYTES_MAX,)]
    assert database.rows("PRAGMA foreign_keys") == [(1,)]


def test_a_transaction_is_all_or_nothing(database):
    """Also when it is the caller that fails."""
    with pytest.raises(ZeroDivisionError), database.transaction() as tables:
        tables.execute("INSERT INTO numbers VALUES (1)")
        raise ZeroDivisionError
    assert database.rows("SELECT n FROM numbers") == []
    with database.transaction() as tables:
        tables.execute("INSERT INTO numbers VALUES (?)", (2,))
    assert database.rows("SELECT n FROM numbers WHERE n = ?", 2) == [(2,)]


@pytest.mark.parametrize("before", [None, 0o644])
def test_its_files_are_of_this_user_alone(path, before):
    """Whatever the umask, and however a backup was put there."""
    if before is not None:
        path.touch()
        path.chmod(before)
    mask = os.umask(0)
    try:
        database = opened(path)
        with database.transaction() as tables:
            tables.execute("INSERT INTO numbers VALUES (1)")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        database.close()
    finally:
        os.umask(mask)
    assert modes == dict.fromkeys(["store.sqlite", "store.sqlite-wal", "store.sqlite-shm", "store.sqlite.lock"], 0o600)


def test_it_is_one_process_s(path, database):
    """A second one is refused, and told by whom and where; after the first has closed, it is not."""
    whose = rf"another config service \(process {os.getpid()}\) has {re.escape(str(path.parent))}: .*state_dir"
    with pytest.raises(StoreError, match=whose):
        opened(path)
    database.close()
    opened(path).close()


def test_a_backup_can_be_taken_meanwhile(path, database, tmp_path):
    """By any program that reads SQLite."""
    with database.transaction() as tables:
        tables.execute("INSERT INTO numbers VALUES (7)")
    reader, backup = sqlite3.connect(path), sqlite3.connect(tmp_path / "backup")
    reader.backup(backup)
    assert backup.execute("SELECT n FROM numbers").fetchall() == [(7,)]
    reader.close()
    backup.close()
    restored = opened(tmp_path / "backup")
    assert restored.rows("SELECT n FROM numbers") == [(7,)]
    restored.close()


def test_who_holds_it_for_a_moment_is_waited_for_and_who_does_not_let_go_is_named(path, database):
    """The wait is bounded; afterwards everything is as before."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="another program holds it"), database.transaction():
        pytest.fail("two are writing")
    other.execute("COMMIT")
    other.close()
    with database.transaction() as tables:
        tables.execute("INSERT INTO numbers VALUES (1)")


def test_a_damaged_file_is_refused_with_what_to_do(path):
    """Not a single byte of it is changed: somebody may want to save what is left."""
    path.write_bytes(b"not a database" * 1000)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"damaged.*backup.*register again.*revoke"):
        opened(path)
    assert path.read_bytes() == before


def test_damage_within_is_found_at_the_start(path, database):
    """Not months later, by the one method that reads the page."""
    with database.transaction() as tables:
        tables.executemany("INSERT INTO words VALUES (?)", (("x" * 3000,) for _ in range(50)))
    database.close()
    with open(path, "r+b") as file:
        file.seek(4096 * 5)
        file.write(b"\xff" * 4096 * 3)
    with pytest.raises(StoreError, match="damaged"):
        opened(path)


def test_a_file_of_a_newer_release_is_refused(path, database):
    """An older one would not know what it breaks."""
    database.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreError, match=r"newer release \(schema 2, this one knows 1\)"):
        opened(path)


def test_another_program_s_database_is_refused(path):
    """A wrong path in a command must not add our tables to somebody's accounts, nor change a byte."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE accounts (n)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's"):
        opened(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "link", "no folder"])
def test_what_is_no_plain_file_is_refused(path, kind):
    """A link may lead anywhere."""
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(path.parent / "elsewhere")
    else:
        path = path / "deeper" / "store.sqlite"
    with pytest.raises(StoreError, match="cannot be opened"):
        opened(path)


def test_a_full_disk_is_said_and_nothing_is_half_done(database):
    """SQLite's own limit stands for the disk's."""
    with database.transaction() as tables:
        tables.execute("PRAGMA max_page_count = 10")
    with pytest.raises(StoreError, match=r"full: look at the disk"), database.transaction() as tables:
        tables.executemany("INSERT INTO words VALUES (?)", (("x" * 3000,) for _ in range(50)))
    assert database.rows("SELECT count(*) FROM words") == [(0,)]


def test_a_mistake_of_ours_is_not_blamed_on_the_disk(database):
    """It stays what it is."""
    with pytest.raises(sqlite3.ProgrammingError), database.transaction() as tables:
        tables.execute("INSERT INTO numbers VALUES (?)", ())
    database.close()
    with pytest.raises(sqlite3.ProgrammingError):
        database.rows("SELECT 1")


def test_closing_twice_is_closing_once(database):
    """Whoever cleans up need not know."""
    database.close()
    database.close()
