"""Who asks, and may they? Every request but GET /healthz passes here before its body is read.

    member      a certificate of this mesh on the connection, not revoked: a process, for its own service only
    operator    the operator's bearer token
    newcomer    a join token, good for one thing: to enrol

No credentials, or ones that are not valid: 401. Valid ones that are not enough: 403. A certificate is looked at with
every request, and again when the body has arrived or a poll has waited: it may have been revoked, or have ended, or its
root may be believed no more, since the handshake. Such a connection is closed.

Whose bearer tokens are wrong too often is answered 429 in the place of 401; a valid token is always heard, whoever
shares its address. A process that asks in a loop is answered 429, before its body is read: each certificate has its
share, and so has each service, because a renewal gives another certificate. So whoever has taken over one process can
hurt the siblings of its service, and never another service.
Sources: RFC 9110 §11, RFC 6750 §3; FAULTS F24, F38.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from weakref import WeakSet

from ..identity.join_token import parse_bearer
from ..identity.spiffe import SpiffeId
from ..identity.svid import enrolment_of
from ..policy.token_bucket import TokenBucket
from ..transport.headers import PEER
from .messages import is_reserved
from .protocol import CONNECTION, Connection

FAILURES_BURST = 20
"""Bearer tokens that one address may get wrong at once; after that its wrong ones are answered 429."""
FAILURES_PER_S = 1.0
"""Wrong bearer tokens a second of one address that are answered 401 after a burst."""
ADDRESSES_MAX = 10_000
"""Addresses whose failures are remembered; beyond, the one that failed longest ago is forgotten."""
REQUESTS_BURST = 1000
"""Requests that the holders of one certificate may make at once (a host that starts all its processes with its
enrolment); after that they are answered 429."""
REQUESTS_PER_S = 20.0
"""Requests a second that one certificate is heard with after a burst: a process makes four at the most."""
MEMBERS_MAX = 20_000
"""Certificates whose requests are counted; beyond, the one that asked longest ago is forgotten."""
SERVICE_REQUESTS_BURST = 20_000
"""Requests that all processes of a service may make at once; after that they are answered 429."""
SERVICE_REQUESTS_PER_S = 400.0
"""Requests a second that one service is heard with after a burst: 10,000 processes that poll make 350."""
SERVICES_MAX = 10_000
"""Services whose requests are counted; beyond, the one that asked longest ago is forgotten."""
AUTHORIZATION_BYTES_MAX = 512
"""Bytes of an Authorization header; a longer one is no token of ours."""

Role = Literal["anyone", "member", "operator", "member or operator", "newcomer"]


@dataclass(frozen=True, slots=True)
class Member:
    """A process with a certificate of this mesh: its service, canonical, and the serial of its leaf."""

    service: str
    serial: int


@dataclass(frozen=True, slots=True)
class Operator:
    """Who has the operator's token."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Who brings a join token, which is not yet looked at."""

    token_id: str
    secret_sha256: str


K = TypeVar("K")
Caller = Member | Operator | Newcomer | None


class Refused(Exception):
    """The caller is not served: `status` and a sentence. `retry_after_s`: when it may be worth asking again."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(message)


class Gate:
    """Decides who a request is from. `operator`: id and secret's SHA-256 of the operator's token. `now`: monotonic
    seconds; `wall`: unix seconds.
    """

    def __init__(
        self, operator: tuple[str, str], now: Callable[[], float], wall: Callable[[], float] = time.time
    ) -> None:
        self.operator, self._now, self._wall = operator, now, wall
        self.revoked: frozenset[int] = frozenset()
        self.issuers: frozenset[bytes] = frozenset()
        self._failures: dict[str, TokenBucket] = {}
        self._requests: dict[int, TokenBucket] = {}
        self._of_service: dict[str, TokenBucket] = {}
        self._connections: WeakSet[Connection] = WeakSet()

    def trust(self, revoked: frozenset[int], issuers: frozenset[bytes]) -> None:
        """From now on the certificates of these enrolments are nobody's, nor those of another root than the ones with
        these key identifiers: their connections end.
        """
        self.revoked, self.issuers = revoked, issuers
        for connection in list(self._connections):
            try:
                self.check(connection)
            except Refused:
                connection.end()

    def admit(self, scope: Mapping[str, Any], role: Role) -> Caller:
        """Who sent this request, if `role` may be served; else Refused."""
        connection = (scope.get("state") or {}).get(CONNECTION)
        if isinstance(connection, Connection):
            self._connections.add(connection)
        if role == "anyone":
            return None
        bearer = _bearer(scope["headers"])
        if bearer is not None and role in ("operator", "member or operator"):
            return self._operator_of(bearer, scope)
        if role == "newcomer":
            return _newcomer(bearer)
        member = self._member(scope)
        if role == "operator":
            raise Refused(403, "this is the operator's: bring the operator's token (--token-file)")
        return member

    def check(self, connection: Connection) -> None:
        """Refused where the certificate of this connection is none any more; the connection ends with that answer."""
        if connection.serial is None:
            return
        connection.ended = True
        if enrolment_of(connection.serial) in self.revoked:
            raise Refused(403, "this certificate is revoked: enrol again, with a new join token")
        if connection.not_after <= self._wall():
            raise Refused(401, "the certificate of this connection has ended: connect anew, with the one in use")
        if connection.issuer is not None and connection.issuer not in self.issuers:
            raise Refused(401, "the root of this connection's certificate is believed no more: connect anew")
        connection.ended = False

    def failed(self, address: str) -> None:
        """A token of this address was not valid, or what came with it: count it. Refused, 429, where that was so too
        often of late.
        """
        bucket, now = self._failures.pop(address, None) or TokenBucket(FAILURES_PER_S, FAILURES_BURST), self._now()
        _remember(self._failures, address, bucket, ADDRESSES_MAX)
        if not bucket.take(now):
            raise Refused(429, "too many tokens from this address were not valid", bucket.ready_at(now) - now)

    def _operator_of(self, bearer: bytes, scope: Mapping[str, Any]) -> Operator:
        token_id, secret_sha256 = parse_bearer(bearer.decode("latin-1")) or ("", "")
        known = hmac.compare_digest(token_id, self.operator[0])
        if hmac.compare_digest(secret_sha256, self.operator[1]) and known:
            connection = (scope.get("state") or {}).get(CONNECTION)
            if isinstance(connection, Connection):
                connection.is_operators = True
            return Operator()
        self.failed(address_of(scope))
        raise Refused(401, "this bearer token is not the operator's")

    def _member(self, scope: Mapping[str, Any]) -> Member:
        state = scope.get("state") or {}
        peer, connection = state.get(PEER), state.get(CONNECTION)
        if not isinstance(peer, SpiffeId) or not isinstance(connection, Connection) or connection.serial is None:
            raise Refused(401, "this needs a certificate of the mesh on the connection, or the operator's token")
        self.check(connection)
        service = peer.service
        if service is None or is_reserved(service):
            raise Refused(403, f"{peer} is not a service that may ask here")
        self._count(connection.serial, service)
        return Member(service, connection.serial)

    def _count(self, serial: int, service: str) -> None:
        """Refused where the holders of this certificate, or all processes of this service, ask too much."""
        now = self._now()
        of_one = self._requests.pop(serial, None) or TokenBucket(REQUESTS_PER_S, REQUESTS_BURST)
        of_all = self._of_service.pop(service, None) or TokenBucket(SERVICE_REQUESTS_PER_S, SERVICE_REQUESTS_BURST)
        _remember(self._requests, serial, of_one, MEMBERS_MAX)
        _remember(self._of_service, service, of_all, SERVICES_MAX)
        if not of_one.take(now):
            raise Refused(429, "too many requests with this certificate", of_one.ready_at(now) - now)
        if not of_all.take(now):
            raise Refused(429, f"too many requests of {service}", of_all.ready_at(now) - now)


def _remember(buckets: dict[K, TokenBucket], key: K, bucket: TokenBucket, at_most: int) -> None:
    buckets[key] = bucket
    if len(buckets) > at_most:
        del buckets[next(iter(buckets))]


def _newcomer(bearer: bytes | None) -> Newcomer:
    parsed = None if bearer is None else parse_bearer(bearer.decode("latin-1"))
    if parsed is None:
        raise Refused(401, "enrolling needs a join token: Authorization: Bearer <id>.<secret>")
    return Newcomer(*parsed)


def address_of(scope: Mapping[str, Any]) -> str:
    """The address a request came from, without its port."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The one Authorization header; None where there is none; an empty one where there are several, or it is absurd."""
    found = [value for name, value in headers if name == b"authorization"]
    if not found:
        return None
    return found[0] if len(found) == 1 and len(found[0]) <= AUTHORIZATION_BYTES_MAX else b""
