"""A SQLite file that one process has: opened with care, waited for with patience, changed in whole transactions.

1.  What is acknowledged outlives kill -9 and a power cut: write-ahead log, flushed at every commit (`synchronous=FULL`;
    with NORMAL the last commits would be lost with the power).
2.  One process at a time, by `flock` on a file beside it, which ends with the process however that ends. Not by
    SQLite's exclusive mode: with that nobody could take a backup meanwhile (`sqlite3 FILE .backup`), and its POSIX lock
    is lost when anything in the process opens and closes the file.
3.  Another program that holds the file for a moment is waited for where the transaction begins, so that there is never
    half of one to repeat.
4.  To restore a backup: stop the process, remove FILE-wal and FILE-shm, put the backup in the place of FILE. A log that
    is left would be played into a file that it does not belong to.

Sources: SQLite: Write-Ahead Logging; How To Corrupt An SQLite Database File, §2 and §4.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

BUSY_WAIT_S = 5.0
"""How long another program's hold on the file is waited for, in seconds. Beyond: StoreError."""

LOCK_WAIT_S = 10.0
"""How long a process that is just ending is waited for, in seconds. Beyond: StoreError."""

WAL_BYTES_MAX = 16 * 1024 * 1024
"""The write-ahead log is cut to this size once it has been copied into the file."""

APPLICATION = 0x6D657368
"""What says in the file that it is ours."""


class StoreError(Exception):
    """The store cannot be used, or not now; the message says what to do."""


class Database:
    """An open file, made by `open`. For several threads, which wait for each other.

    Every method: StoreError when the disk fails, or another program holds the file for too long.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, holding: int, busy_wait_s: float) -> None:
        self._path, self._connection, self._holding = path, connection, holding
        self._busy_wait_s, self._lock = busy_wait_s, threading.Lock()

    @classmethod
    def open(
        cls, path: Path, schema: int, tables: str, busy_wait_s: float = BUSY_WAIT_S, lock_wait_s: float = LOCK_WAIT_S
    ) -> Database:
        """The database at `path`, mode 0600, made with these `tables` (SQL) where there is none; the folder exists.

        `schema` ≥ 1: the number of their form. StoreError when another process has it, it is damaged, of a higher
        schema, or something else altogether.
        """
        holding = _locked(path.with_name(path.name + ".lock"), lock_wait_s)
        try:
            os.close(_opened(path))
            with _told(path):
                connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        except BaseException:
            os.close(holding)
            raise
        database = cls(path, connection, holding, busy_wait_s)
        try:
            database._begin(schema, tables)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Let go of the file. Twice is once."""
        with self._lock:
            self._connection.close()
            holding, self._holding = self._holding, -1
            if holding >= 0:
                os.close(holding)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is done inside happens, or, when it raises, nothing of it."""
        with self._lock, _told(self._path):
            self._patiently("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """What one SELECT finds."""
        with self._lock, _told(self._path):
            return self._patiently(sql, values).fetchall()

    def _begin(self, schema: int, tables: str) -> None:
        """Look whether the file is ours and whole, say how it is to be used, and make what is missing.

        In this order: a file that is not ours must stay as it is.
        """
        with _told(self._path):
            is_new = _is_new(self._path, self._patiently, schema)
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "trusted_schema = OFF"):
                self._patiently(f"PRAGMA {pragma}")
            self._patiently(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
            (found,) = self._patiently("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
        if is_new:
            with self.transaction() as connection:
                for statement in filter(str.strip, tables.split(";")):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
                connection.execute(f"PRAGMA user_version = {schema}")

    def _patiently(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """Execute, and while another program holds the file, again."""
        return _retrying(_is_busy, self._busy_wait_s)(self._connection.execute, sql, values)


def _is_new(path: Path, execute: Callable[[str], sqlite3.Cursor], schema: int) -> bool:
    """Is there nothing yet? StoreError where there is something else than ours, of a release that we know."""
    (application,) = execute("PRAGMA application_id").fetchone()
    (written,) = execute("PRAGMA user_version").fetchone()
    (tables,) = execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION and (tables or written):
        raise StoreError(f"{path} is another program's database: give the store a path of its own")
    if written > schema:
        raise StoreError(
            f"{path} was written by a newer release (schema {written}, this one knows {schema}): install that release, "
            "or restore the backup from before the upgrade"
        )
    return not tables


def _retrying(when: Callable[[BaseException], bool], for_s: float) -> Retrying:
    return Retrying(
        retry=retry_if_exception(when),
        wait=wait_random_exponential(multiplier=0.01, max=0.25),
        stop=stop_after_delay(for_s),
        reraise=True,
    )


def _is_busy(error: BaseException) -> bool:
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits say which kind of busy
    return primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite says of the file, with what to do. Its other errors are mistakes of ours, and stay what they are."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if _is_busy(error):
            advice = "another program holds it (a backup, an open sqlite3): let it end, and try again"
        elif type(error) is sqlite3.OperationalError:
            advice = "look at the disk: is it full, read-only, gone?"
        elif type(error) is sqlite3.DatabaseError:
            advice = (
                "it is damaged. Stop the service, move the file, its -wal and its -shm away, and put a backup in its "
                "place. Without one, start with none: processes register again by themselves; the policy must be "
                "applied again, tokens made again, and what was revoked revoked again"
            )
        else:
            raise
        raise StoreError(f"the store {path} cannot be used: {error}: {advice}") from error


def _opened(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(fd, 0o600)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}): it must be a plain file of this user") from error
    return fd


def _locked(path: Path, wait_s: float) -> int:
    """The lock, held as long as the descriptor is open. Its file says who has it."""
    fd = _opened(path)
    try:
        _retrying(lambda error: isinstance(error, BlockingIOError), wait_s)(
            fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB
        )
    except BlockingIOError:
        holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StoreError(
            f"another config service (process {holder}) has {path.parent}: stop that one, or use another state_dir"
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
    except OSError:
        pass  # it is for the message of others only; what fails here fails again where it matters
    return fd
