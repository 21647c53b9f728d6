"""What the config service must not forget: a SQLite file. Every method is one transaction: all of it, or nothing.

    resources   what is published        tokens, redemptions   join tokens, and the keys that have used them
    instances   who is registered        certificates          leaves: whose, renewed from which, revoked or not
    policies    the last HISTORY_MAX     about                 the operator's token

1.  Leases are not here: a poll writes nothing, only what changes is written.
2.  An older n never replaces a newer one.
3.  A token's use belongs to a key. So a lost answer may be asked for again, and of many who come with different keys
    to a token of one use one wins (F24).
4.  A leaf is remembered as long as one that it comes from lives: so revoking finds all that were renewed from it.
5.  What has expired is forgotten, and whatever can grow has a bound.

How the file is opened, locked, flushed and restored: `database`. Source: SPIRE's datastore.
"""

from __future__ import annotations

import hmac
import json
import math
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .catalog import GONE_MAX, Row
from .database import Database
from .database import StoreError as StoreError  # what every method may raise
from .registry import Instance

HISTORY_MAX = 100
"""Policies that are kept; beyond, the oldest is forgotten. Each may have 1 MiB."""

TOKENS_MAX = 10_000
"""Join tokens that are kept. Beyond, those that have expired go at once; where none has, one more is refused."""

TOKEN_KEPT_S = 3600.0
"""An expired token is told from an unknown one this long, in seconds."""

TOKEN_LIFE_S_MAX = 30 * 86_400.0
"""The longest life of a join token, in seconds; a longer one is refused."""

CERTIFICATES_MAX = 200_000
"""Leaves that are remembered until they expire: 10,000 processes have some 30,000. One more is refused."""

SERVICE_CERTIFICATES_MAX = 60_000
"""The same of one service: a process that asks for ever more keeps none from others. One more is refused."""

REVOKED_MAX = 4_096
"""Revoked leaves that have not expired: every process gets the list. Beyond, revoking is refused: rotate the root."""

UNKNOWN_LIFE_S = 8760 * 3600.0
"""A revoked leaf that the store does not know, because a store was lost, is taken to live this long: the longest."""

_SCHEMA = 1
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE resources (resource TEXT PRIMARY KEY, n INTEGER NOT NULL, json TEXT NOT NULL);
CREATE INDEX gone ON resources (n) WHERE json = 'null';
CREATE TABLE instances (
    id TEXT PRIMARY KEY, service TEXT NOT NULL, address TEXT NOT NULL, zone TEXT NOT NULL, weight INTEGER NOT NULL,
    labels TEXT NOT NULL, draining INTEGER NOT NULL, absent INTEGER NOT NULL);
CREATE TABLE policies (n INTEGER PRIMARY KEY, at REAL NOT NULL, source TEXT NOT NULL, document TEXT NOT NULL);
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, service TEXT NOT NULL, uses INTEGER NOT NULL,
    used INTEGER NOT NULL, expires REAL NOT NULL, removed INTEGER NOT NULL);
CREATE INDEX token_ends ON tokens (expires);
CREATE TABLE redemptions (
    token TEXT NOT NULL REFERENCES tokens ON DELETE CASCADE, key_sha256 TEXT NOT NULL, PRIMARY KEY (token, key_sha256));
CREATE TABLE certificates (
    serial TEXT PRIMARY KEY, service TEXT NOT NULL, instance TEXT NOT NULL, parent TEXT, key_sha256 TEXT NOT NULL,
    not_after REAL NOT NULL, kept_until REAL NOT NULL, revoked_at REAL);
CREATE INDEX certificate_parents ON certificates (parent);
CREATE INDEX certificate_keys ON certificates (key_sha256);
CREATE INDEX certificate_ends ON certificates (kept_until);
CREATE INDEX certificates_revoked ON certificates (not_after) WHERE revoked_at IS NOT NULL;
"""
_RENEWED_FROM = """
WITH RECURSIVE tree (serial) AS (
    SELECT ? UNION SELECT certificates.serial FROM certificates JOIN tree ON certificates.parent = tree.serial)
SELECT serial FROM tree
"""


class StoreFull(Exception):
    """A bound of the store is reached; the message says which, and what to do."""


class TokenRefused(Exception):
    """A join token may not be used. `reason`: unknown (also: a wrong secret), used, expired or revoked."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"this join token is {reason}: make a new one with meshlib token create")


class CertificateRevoked(Exception):
    """The leaf that asks for another, or the key that it asks for, was revoked."""


class PolicyChanged(Exception):
    """Another policy is in force than the one that was to be replaced. `n`: its version, 0 for none."""

    def __init__(self, n: int) -> None:
        self.n = n
        super().__init__(f"the policy has version {n} by now: look at it, and change that one")


class Policy(NamedTuple):
    """A policy as it was put. `at`: unix seconds. `source`: what it came from."""

    n: int
    at: float
    source: str
    document: str


class Token(NamedTuple):
    """A join token without its secret; `used` of its `uses` are gone. `expires`: unix seconds."""

    id: str
    service: str
    uses: int
    used: int
    expires: float


class Certificate(NamedTuple):
    """A leaf. `instance`: '' where it is not known. `parent`: the serial that it was renewed from; None: enrolled.
    `key_sha256`: hex, of its public key. `not_after`: unix seconds.
    """

    serial: int
    service: str
    instance: str
    parent: int | None
    key_sha256: str
    not_after: float


class Store:
    """An open store, made by `open`. Used from one thread at a time; a lock sees to it.

    Every method: StoreError when the disk fails, or another program holds the file too long.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._epoch = database, secrets.token_hex(16)
        with database.transaction() as tables:
            self._certificates = _by_service(tables)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Store:
        """The store at `path`, made where there is none; its folder exists and is private. Also as `Database.open`."""
        database = Database.open(Path(path), _SCHEMA, _TABLES)
        try:
            return cls(database)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Let go of the file. Twice is once."""
        self._database.close()

    @property
    def epoch(self) -> str:
        """32 hex digits, made at random each time that it is opened: what a store believes to be there may be from a
        backup, so after a start every process takes everything anew, and keeps the endpoints that it knew for a while.
        """
        return self._epoch

    # ---- what is published, and who is registered

    def resources(self) -> list[Row]:
        """Every published resource, those that are gone (null) included."""
        sql = "SELECT resource, n, json FROM resources ORDER BY n, resource"
        return [Row(*row) for row in self._database.rows(sql)]

    def last_n(self) -> int:
        """The highest version in the store; 0 for none."""
        sql = "SELECT max((SELECT ifnull(max(n), 0) FROM resources), (SELECT ifnull(max(n), 0) FROM policies))"
        return int(self._database.rows(sql)[0][0])

    def save(self, rows: Iterable[Row], instances: Iterable[Instance] = (), gone: Iterable[str] = ()) -> None:
        """Keep these resources and instances, and forget the instances with the ids `gone`."""
        with self._database.transaction() as tables:
            _keep_rows(tables, rows)
            tables.executemany(
                "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "service = excluded.service, address = excluded.address, zone = excluded.zone, "
                "weight = excluded.weight, labels = excluded.labels, draining = excluded.draining, "
                "absent = excluded.absent",
                map(_columns, instances),
            )
            tables.executemany("DELETE FROM instances WHERE id = ?", ((instance,) for instance in gone))

    def instances(self) -> list[Instance]:
        """Every registered instance, in the order of first registration."""
        sql = "SELECT id, service, address, zone, weight, labels, draining, absent FROM instances ORDER BY rowid"
        return [_instance(*row) for row in self._database.rows(sql)]

    # ---- policies

    def add_policy(
        self, n: int, at: float, source: str, document: str, rows: Iterable[Row], *, expected: int | None = None
    ) -> None:
        """Keep a policy with version `n` and its resources. PolicyChanged when the last one has another version than
        `expected` (None: any), or one that is not below `n`.
        """
        with self._database.transaction() as tables:
            (last,) = tables.execute("SELECT ifnull(max(n), 0) FROM policies").fetchone()
            if last >= n or expected not in (None, last):
                raise PolicyChanged(last)
            tables.execute("INSERT INTO policies VALUES (?, ?, ?, ?)", (n, at, source, document))
            _keep_rows(tables, rows)
            sql = "DELETE FROM policies WHERE n NOT IN (SELECT n FROM policies ORDER BY n DESC LIMIT ?)"
            tables.execute(sql, (HISTORY_MAX,))

    def policy(self, n: int | None = None) -> Policy | None:
        """The policy with version `n`, or the last one; None where there is none."""
        sql = "SELECT n, at, source, document FROM policies WHERE ?1 IS NULL OR n = ?1 ORDER BY n DESC LIMIT 1"
        return next((Policy(*row) for row in self._database.rows(sql, n)), None)

    def history(self, limit: int = HISTORY_MAX) -> list[Policy]:
        """The last `limit` ≥ 0 policies, the newest first, without their documents ('')."""
        sql = "SELECT n, at, source, '' FROM policies ORDER BY n DESC LIMIT ?"
        return [Policy(*row) for row in self._database.rows(sql, limit)]

    # ---- tokens

    def add_token(
        self, token_id: str, secret_sha256: str, *, service: str, uses: int, expires: float, now: float
    ) -> None:
        """Keep a join token. ValueError when it would live longer than 30 days; StoreFull."""
        if expires - now > TOKEN_LIFE_S_MAX:
            raise ValueError(f"a join token lives at most {TOKEN_LIFE_S_MAX:.0f} s, not {expires - now:.0f} s")
        with self._database.transaction() as tables:
            if _count(tables, "tokens") >= TOKENS_MAX:
                tables.execute("DELETE FROM tokens WHERE expires <= ?", (now,))
            if _count(tables, "tokens") >= TOKENS_MAX:
                raise StoreFull(f"there are {TOKENS_MAX} join tokens; end some: meshlib token revoke")
            values = (token_id, secret_sha256, service, uses, 0, expires, False)
            tables.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    def redeem(self, token_id: str, secret_sha256: str, key_sha256: str, now: float) -> str:
        """Use a token once, for this key; asked again for the same key it is the same use. Returns its service.

        TokenRefused.
        """
        with self._database.transaction() as tables:
            sql = "SELECT secret_sha256, service, uses, used, expires, removed FROM tokens WHERE id = ?"
            found = tables.execute(sql, (token_id,)).fetchone()
            if found is None or not hmac.compare_digest(found[0], secret_sha256):
                raise TokenRefused("unknown")
            _, service, uses, used, expires, removed = found
            if removed or now >= expires:
                raise TokenRefused("revoked" if removed else "expired")
            redemption = (token_id, key_sha256)
            if not tables.execute("INSERT INTO redemptions VALUES (?, ?) ON CONFLICT DO NOTHING", redemption).rowcount:
                return str(service)
            if used >= uses:
                raise TokenRefused("used")
            tables.execute("UPDATE tokens SET used = used + 1 WHERE id = ?", (token_id,))
            return str(service)

    def tokens(self, now: float) -> list[Token]:
        """Those that have not expired and were not removed, the first to expire first."""
        sql = (
            "SELECT id, service, uses, used, expires FROM tokens WHERE expires > ? AND NOT removed ORDER BY expires, id"
        )
        return [Token(*row) for row in self._database.rows(sql, now)]

    def remove_token(self, token_id: str) -> bool:
        """Revoke it: no more uses, not even one again. False where there is no such token."""
        with self._database.transaction() as tables:
            sql = "UPDATE tokens SET removed = 1 WHERE id = ? AND NOT removed"
            return tables.execute(sql, (token_id,)).rowcount > 0

    def set_operator(self, token_id: str, secret_sha256: str) -> None:
        """The operator's token; the one before is none any more."""
        with self._database.transaction() as tables:
            sql = "INSERT INTO about VALUES ('operator', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
            tables.execute(sql, (f"{token_id} {secret_sha256}",))

    def operator(self) -> tuple[str, str] | None:
        """(id, SHA-256 of the secret in hex) of the operator's token; None where none was set."""
        for (value,) in self._database.rows("SELECT value FROM about WHERE key = 'operator'"):
            token_id, _, secret_sha256 = value.partition(" ")
            return token_id, secret_sha256
        return None

    # ---- certificates

    def add_certificate(self, certificate: Certificate, now: float) -> None:
        """Remember a leaf; it is not to be handed out before. It is kept as long as one that it comes from.

        CertificateRevoked when its parent was revoked, or its key; StoreFull.
        """
        serial, service, instance, parent, key_sha256, not_after = certificate
        row = (_hex(serial), service, instance, None if parent is None else _hex(parent), key_sha256, not_after)
        if full := self._full(service):
            self.forget(now)
            if full := self._full(service):
                raise StoreFull(f"{full} certificates have not expired; one more can be had when some have")
        with self._database.transaction() as tables:
            sql = "SELECT 1 FROM certificates WHERE revoked_at IS NOT NULL AND (serial = ? OR key_sha256 = ?)"
            if tables.execute(sql, (row[3], key_sha256)).fetchone():
                raise CertificateRevoked("this certificate, or this key, was revoked: enrol with a new token and key")
            (kept,) = tables.execute("SELECT max(kept_until) FROM certificates WHERE serial = ?", row[3:4]).fetchone()
            values = (*row, max(not_after, kept or -math.inf), None)
            tables.execute("INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        self._certificates[service] += 1

    def _full(self, service: str) -> str:
        """Which bound leaves no room for one more; '' where there is room."""
        if self._certificates[service] >= SERVICE_CERTIFICATES_MAX:
            return f"{SERVICE_CERTIFICATES_MAX} of {service}'s"
        return str(CERTIFICATES_MAX) if self._certificates.total() >= CERTIFICATES_MAX else ""

    def revoke(self, serial: int, at: float) -> list[int]:
        """Revoke a leaf, known or not, and everything that was renewed from it. All of these serials; StoreFull."""
        with self._database.transaction() as tables:
            sql = "INSERT INTO certificates VALUES (?, '', '', NULL, '', ?2, ?2, NULL) ON CONFLICT DO NOTHING"
            tables.execute(sql, (_hex(serial), at + UNKNOWN_LIFE_S))
            serials = [found for (found,) in tables.execute(_RENEWED_FROM, (_hex(serial),))]
            tables.executemany(
                # kept until no token lives that its key might have redeemed, so that it cannot redeem it again
                "UPDATE certificates SET revoked_at = ?1, kept_until = max(kept_until, ?1 + ?2) WHERE serial = ?3",
                ((at, TOKEN_LIFE_S_MAX, found) for found in serials),
            )
            (count,) = tables.execute(
                "SELECT count(*) FROM certificates WHERE revoked_at IS NOT NULL AND not_after > ?", (at,)
            ).fetchone()
            if count > REVOKED_MAX:
                raise StoreFull(f"more than {REVOKED_MAX} certificates are revoked: meshlib ca rotate --root, twice")
        return [int(found, 16) for found in serials]

    def is_revoked(self, serial: int) -> bool:
        """Was this leaf revoked?"""
        sql = "SELECT 1 FROM certificates WHERE serial = ? AND revoked_at IS NOT NULL"
        return bool(self._database.rows(sql, _hex(serial)))

    def revoked(self, now: float) -> list[int]:
        """Serials of revoked leaves that have not expired, sorted."""
        sql = "SELECT serial FROM certificates WHERE revoked_at IS NOT NULL AND not_after > ?"
        return sorted(int(serial, 16) for (serial,) in self._database.rows(sql, now))

    def forget(self, now: float) -> None:
        """Drop what has expired: tokens, an hour later, and certificates. To be called now and then."""
        with self._database.transaction() as tables:
            tables.execute("DELETE FROM tokens WHERE expires <= ?", (now - TOKEN_KEPT_S,))
            tables.execute("DELETE FROM certificates WHERE kept_until <= ?", (now,))
            left = _by_service(tables)
        self._certificates = left


def _keep_rows(tables: sqlite3.Connection, rows: Iterable[Row]) -> None:
    sql = (
        "INSERT INTO resources VALUES (?, ?, ?) ON CONFLICT (resource) DO UPDATE SET n = excluded.n, "
        "json = excluded.json WHERE excluded.n > resources.n"
    )
    tables.executemany(sql, rows)
    gone = "SELECT resource FROM resources WHERE json = 'null' ORDER BY n DESC LIMIT -1 OFFSET ?"
    tables.execute(f"DELETE FROM resources WHERE resource IN ({gone})", (GONE_MAX,))  # noqa: S608 - a constant


def _columns(instance: Instance) -> tuple[Any, ...]:
    labels = json.dumps(dict(instance.labels), sort_keys=True)
    facts = (instance.id, instance.service, instance.address, instance.zone, instance.weight)
    return (*facts, labels, instance.draining, instance.absent)


def _instance(
    instance_id: str, service: str, address: str, zone: str, weight: int, labels: str, draining: int, absent: int
) -> Instance:
    return Instance(instance_id, service, address, zone, weight, json.loads(labels), bool(draining), bool(absent))


def _by_service(tables: sqlite3.Connection) -> Counter[str]:
    """How many certificates are kept, by service."""
    return Counter(dict(tables.execute("SELECT service, count(*) FROM certificates GROUP BY service").fetchall()))


def _count(tables: sqlite3.Connection, table: str) -> int:
    return int(tables.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a name of ours


def _hex(serial: int) -> str:
    return f"{serial:x}"
