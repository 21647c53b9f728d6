"""What the config service must not forget: a SQLite file. Every method is one transaction: all of it, or nothing.

    resources   what is published        tokens, redemptions   join tokens, and the keys that have used them
    instances   who is registered        enrolments            uses of tokens that have leaves, revoked or not
    policies    the last HISTORY_MAX     about                 the operator's token, the age of the store

1.  Leases are not here: a poll writes nothing, only what changes is written.
2.  An older n never replaces a newer one.
3.  A token's use belongs to a key. So a lost answer may be asked for again, and of many who come with different keys
    to a token of one use one wins (F24).
4.  Of leaves only their enrolment is remembered, which is in their serial, as long as one of them lives: a process
    that renews without end takes no room, and what is revoked is one row, whatever came from it.
5.  What has expired is forgotten, and whatever can grow has a bound.

How the file is opened, locked, flushed and restored: `database`. Source: SPIRE's datastore.
"""

from __future__ import annotations

import hmac
import json
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
from .registry import Instance, Key

HISTORY_MAX = 100
"""Policies that are kept; beyond, the oldest is forgotten. Each may have 1 MiB."""

TOKENS_MAX = 10_000
"""Join tokens that are kept. Beyond, those that have expired go at once; where none has, one more is refused."""

TOKEN_KEPT_S = 3600.0
"""An expired token is told from an unknown one this long, in seconds."""

TOKEN_LIFE_S_MAX = 30 * 86_400.0
"""The longest life of a join token, in seconds; a longer one is refused."""

ENROLMENTS_MAX = 200_000
"""Enrolments that are remembered until their last leaf expires, one per host and service. One more is refused."""

SERVICE_ENROLMENTS_MAX = 60_000
"""The same of one service: who has a token of many uses keeps none from others. One more is refused."""

REVOKED_MAX = 4_096
"""Revoked enrolments that every process is told of. Beyond, the oldest are known here only: rotate the root."""

UNKNOWN_LIFE_S = 8760 * 3600.0
"""An enrolment that the store does not know, because a store was lost, has leaves that may live this long."""

_SCHEMA = 1
_TABLES = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE resources (resource TEXT PRIMARY KEY, n INTEGER NOT NULL, json TEXT NOT NULL);
CREATE INDEX gone ON resources (n) WHERE json = 'null';
CREATE TABLE instances (
    service TEXT NOT NULL, id TEXT NOT NULL, address TEXT NOT NULL, zone TEXT NOT NULL, weight INTEGER NOT NULL,
    labels TEXT NOT NULL, draining INTEGER NOT NULL, absent INTEGER NOT NULL, PRIMARY KEY (service, id));
CREATE TABLE policies (n INTEGER PRIMARY KEY, at REAL NOT NULL, source TEXT NOT NULL, document TEXT NOT NULL);
CREATE TABLE tokens (
    id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL, service TEXT NOT NULL, uses INTEGER NOT NULL,
    used INTEGER NOT NULL, expires REAL NOT NULL, removed INTEGER NOT NULL);
CREATE INDEX token_ends ON tokens (expires);
CREATE TABLE redemptions (
    token TEXT NOT NULL REFERENCES tokens ON DELETE CASCADE, key_sha256 TEXT NOT NULL, enrolment INTEGER NOT NULL,
    PRIMARY KEY (token, key_sha256));
CREATE INDEX redeemed ON redemptions (enrolment);
CREATE TABLE enrolments (
    enrolment INTEGER PRIMARY KEY, service TEXT NOT NULL, token TEXT NOT NULL, instance TEXT NOT NULL,
    ends REAL NOT NULL, revoked_at REAL);
CREATE INDEX enrolment_ends ON enrolments (ends);
CREATE INDEX revocations ON enrolments (revoked_at) WHERE revoked_at IS NOT NULL;
"""


class StoreFull(Exception):
    """A bound of the store is reached; the message says which, and what to do."""


class TokenRefused(Exception):
    """A join token may not be used. `reason`: unknown (also: a wrong secret), used, expired, revoked, of another."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"this join token is {reason}: make a new one with meshlib token create")


class CertificateRevoked(Exception):
    """The enrolment of the leaf that asks for another, or of the key that enrols again, was revoked."""


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


class Revoked(NamedTuple):
    """What every process is to be told of: the newest REVOKED_MAX `enrolments`, sorted; and how many there are."""

    enrolments: list[int]
    in_all: int


class Store:
    """An open store, made by `open`. Used from one thread at a time; a lock sees to it.

    Every method: StoreError when the disk fails, or another program holds the file too long.
    """

    def __init__(self, database: Database) -> None:
        self._database, self._epoch = database, secrets.token_hex(16)
        with database.transaction() as tables:
            self._enrolments = _by_service(tables)

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

    def made_at(self, now: float) -> float:
        """When this was first asked of this store, in unix seconds: `now`, the first time."""
        with self._database.transaction() as tables:
            tables.execute("INSERT INTO about VALUES ('made', ?) ON CONFLICT DO NOTHING", (repr(now),))
            return float(tables.execute("SELECT value FROM about WHERE key = 'made'").fetchone()[0])

    def save(self, rows: Iterable[Row], instances: Iterable[Instance] = (), gone: Iterable[Key] = ()) -> None:
        """Keep these resources and instances, and forget the instances `gone`."""
        with self._database.transaction() as tables:
            _keep_rows(tables, rows)
            tables.executemany(
                "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (service, id) DO UPDATE SET "
                "address = excluded.address, zone = excluded.zone, weight = excluded.weight, "
                "labels = excluded.labels, draining = excluded.draining, absent = excluded.absent",
                map(_columns, instances),
            )
            tables.executemany("DELETE FROM instances WHERE service = ? AND id = ?", gone)

    def instances(self) -> list[Instance]:
        """Every registered instance, in the order of first registration."""
        sql = "SELECT service, id, address, zone, weight, labels, draining, absent FROM instances ORDER BY rowid"
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

    def redeem(
        self, token_id: str, secret_sha256: str, key_sha256: str, enrolment: int, now: float, expected: str = ""
    ) -> tuple[str, int]:
        """Use a token once, for this key; asked again for the same key it is the same use. Returns its service, and
        the enrolment of this use: `enrolment` if it is the first time. TokenRefused, also where it is not the token of
        `expected`, a service, if that is given: it is not used then.
        """
        with self._database.transaction() as tables:
            sql = "SELECT secret_sha256, service, uses, used, expires, removed FROM tokens WHERE id = ?"
            found = tables.execute(sql, (token_id,)).fetchone()
            if found is None or not hmac.compare_digest(found[0], secret_sha256):
                raise TokenRefused("unknown")
            _, service, uses, used, expires, removed = found
            if removed or now >= expires:
                raise TokenRefused("revoked" if removed else "expired")
            if expected and expected != service:
                raise TokenRefused(f"of {service}, not of {expected}")
            sql = "SELECT enrolment FROM redemptions WHERE token = ? AND key_sha256 = ?"
            if (again := tables.execute(sql, (token_id, key_sha256)).fetchone()) is not None:
                return str(service), int(again[0])
            if used >= uses:
                raise TokenRefused("used")
            tables.execute("INSERT INTO redemptions VALUES (?, ?, ?)", (token_id, key_sha256, enrolment))
            tables.execute("UPDATE tokens SET used = used + 1 WHERE id = ?", (token_id,))
            return str(service), enrolment

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

    # ---- enrolments

    def add_leaf(
        self, enrolment: int, service: str, not_after: float, now: float, *, token: str = "", instance: str = ""
    ) -> None:
        """Remember that a leaf of this enrolment lives until `not_after`; it is not to be handed out before.

        `token`: the id of the one that was used, `instance`: who used it; '' where that is not known.
        CertificateRevoked when the enrolment was revoked; StoreFull when it is one too many.
        """
        sql = "SELECT revoked_at FROM enrolments WHERE enrolment = ?"
        known = self._database.rows(sql, enrolment)
        if not known and self._full(service):
            self.forget(now)
            if full := self._full(service):
                raise StoreFull(f"{full} enrolments have leaves; one more can be had when some have ended")
        with self._database.transaction() as tables:
            known = tables.execute(sql, (enrolment,)).fetchone()
            if known is not None and known[0] is not None:
                raise CertificateRevoked("this certificate was revoked: enrol with a new token and a new key")
            tables.execute(
                "INSERT INTO enrolments VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (enrolment) DO UPDATE SET "
                "ends = max(ends, excluded.ends)",
                (enrolment, service, token, instance, not_after),
            )
        self._enrolments[service] += known is None

    def _full(self, service: str) -> str:
        """Which bound leaves no room for one more; '' where there is room."""
        if self._enrolments[service] >= SERVICE_ENROLMENTS_MAX:
            return f"{SERVICE_ENROLMENTS_MAX} of {service}'s"
        return str(ENROLMENTS_MAX) if self._enrolments.total() >= ENROLMENTS_MAX else ""

    def revoke(self, enrolment: int, at: float, leaf_life_s: float, *, unknown: bool = False) -> bool:
        """Revoke an enrolment for as long as one of its leaves may live, which is `leaf_life_s` for what the store
        may have forgotten. False where it is not known: then only `unknown` makes it so.
        """
        with self._database.transaction() as tables:
            sql = (
                "UPDATE enrolments SET revoked_at = ifnull(revoked_at, ?1), ends = max(ends, ?1 + ?2) "
                "WHERE enrolment = ?3"
            )
            found = tables.execute(sql, (at, leaf_life_s, enrolment)).rowcount > 0
            if unknown and not found:
                values = (enrolment, at + UNKNOWN_LIFE_S, at)
                tables.execute("INSERT INTO enrolments VALUES (?, '', '', '', ?, ?)", values)
                self._enrolments[""] += 1
        return found or unknown

    def revoked(self, now: float) -> Revoked:
        """Revoked enrolments that have leaves which have not ended."""
        sql = "SELECT enrolment FROM enrolments WHERE revoked_at IS NOT NULL AND ends > ? ORDER BY revoked_at DESC"
        found = [int(enrolment) for (enrolment,) in self._database.rows(sql, now)]
        return Revoked(sorted(found[:REVOKED_MAX]), len(found))

    def forget(self, now: float) -> None:
        """Drop what has expired: tokens, an hour later, and enrolments; one that is revoked not before the token that
        its key could redeem again. To be called now and then.
        """
        with self._database.transaction() as tables:
            tables.execute("DELETE FROM tokens WHERE expires <= ?", (now - TOKEN_KEPT_S,))
            redeemable = "revoked_at IS NOT NULL AND enrolment IN (SELECT enrolment FROM redemptions)"
            tables.execute(f"DELETE FROM enrolments WHERE ends <= ? AND NOT ({redeemable})", (now,))  # noqa: S608 - ours
            left = _by_service(tables)
        self._enrolments = left


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
    facts = (instance.service, instance.id, instance.address, instance.zone, instance.weight)
    return (*facts, labels, instance.draining, instance.absent)


def _instance(
    service: str, instance_id: str, address: str, zone: str, weight: int, labels: str, draining: int, absent: int
) -> Instance:
    return Instance(instance_id, service, address, zone, weight, json.loads(labels), bool(draining), bool(absent))


def _by_service(tables: sqlite3.Connection) -> Counter[str]:
    """How many enrolments are kept, by service."""
    return Counter(dict(tables.execute("SELECT service, count(*) FROM enrolments GROUP BY service").fetchall()))


def _count(tables: sqlite3.Connection, table: str) -> int:
    return int(tables.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - a name of ours
