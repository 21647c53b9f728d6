"""Who asks, and may they? Every request but GET /healthz passes here before its body is read.

    member      a certificate of this mesh on the connection, not revoked: a process, for its own service only
    operator    the operator's bearer token
    newcomer    a join token, good for one thing: to enrol

No credentials, or ones that are not valid: 401. Valid ones that are not enough: 403. Who fails with bearer tokens too
often from one address is answered 429 unheard; the operator's token, which costs nothing to compare, is always heard.
A process that asks in a loop is answered 429, before its body is read.
Sources: RFC 9110 §11, RFC 6750 §3; FAULTS F24, F38.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..identity.join_token import parse_bearer
from ..identity.spiffe import SpiffeId
from ..policy.token_bucket import TokenBucket
from ..transport.headers import PEER
from .messages import is_reserved
from .protocol import CONNECTION, Connection

FAILURES_BURST = 20
"""Bearer tokens that one address may get wrong at once; after that it is answered 429."""
FAILURES_PER_S = 1.0
"""Wrong bearer tokens a second that one address is heard with after a burst."""
ADDRESSES_MAX = 10_000
"""Addresses whose failures are remembered; beyond, the one that failed longest ago is forgotten."""
REQUESTS_BURST = 1000
"""Requests that the holders of one certificate may make at once (a host that starts all its processes with its
enrolment); after that they are answered 429."""
REQUESTS_PER_S = 20.0
"""Requests a second that one certificate is heard with after a burst: a process makes four at the most."""
MEMBERS_MAX = 20_000
"""Certificates whose requests are counted; beyond, the one that asked longest ago is forgotten."""
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


Caller = Member | Operator | Newcomer | None


class Refused(Exception):
    """The caller is not served: `status` and a sentence. `retry_after_s`: when it may be worth asking again."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(message)


class Gate:
    """Decides who a request is from. `operator`: id and secret's SHA-256 of the operator's token. `now`: monotonic."""

    def __init__(self, operator: tuple[str, str], now: Callable[[], float]) -> None:
        self.revoked: frozenset[int] = frozenset()
        self.operator, self._now = operator, now
        self._failures: dict[str, TokenBucket] = {}
        self._requests: dict[int, TokenBucket] = {}

    def admit(self, scope: Mapping[str, Any], role: Role) -> Caller:
        """Who sent this request, if `role` may be served; else Refused."""
        if role == "anyone":
            return None
        bearer = _bearer(scope["headers"])
        if bearer is not None and role in ("operator", "member or operator"):
            return self._operator_of(bearer, address_of(scope))
        if role == "newcomer":
            return self._newcomer(bearer, address_of(scope))
        member = self._member(scope)
        if role == "operator":
            raise Refused(403, "this is the operator's: bring the operator's token (--token-file)")
        return member

    def failed(self, address: str) -> None:
        """A bearer token of this address was not valid: count it."""
        bucket = self._failures.pop(address, None) or TokenBucket(FAILURES_PER_S, FAILURES_BURST)
        bucket.take(self._now())
        self._failures[address] = bucket
        if len(self._failures) > ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]

    def _heard(self, address: str) -> None:
        """Refused where this address has failed too often of late."""
        bucket, now = self._failures.get(address), self._now()
        if bucket is not None and (at := bucket.ready_at(now)) > now:
            raise Refused(429, "too many tokens from this address were not valid", at - now)

    def _operator_of(self, bearer: bytes, address: str) -> Operator:
        token_id, secret_sha256 = parse_bearer(bearer.decode("latin-1")) or ("", "")
        known = hmac.compare_digest(token_id, self.operator[0])
        if hmac.compare_digest(secret_sha256, self.operator[1]) and known:
            return Operator()
        self._heard(address)
        self.failed(address)
        raise Refused(401, "this bearer token is not the operator's")

    def _newcomer(self, bearer: bytes | None, address: str) -> Newcomer:
        self._heard(address)
        parsed = None if bearer is None else parse_bearer(bearer.decode("latin-1"))
        if parsed is None:
            raise Refused(401, "enrolling needs a join token: Authorization: Bearer <id>.<secret>")
        return Newcomer(*parsed)

    def _member(self, scope: Mapping[str, Any]) -> Member:
        state = scope.get("state") or {}
        peer, connection = state.get(PEER), state.get(CONNECTION)
        if not isinstance(peer, SpiffeId) or not isinstance(connection, Connection) or connection.serial is None:
            raise Refused(401, "this needs a certificate of the mesh on the connection, or the operator's token")
        if connection.serial in self.revoked:
            raise Refused(403, "this certificate is revoked: enrol again, with a new join token")
        service = peer.service
        if service is None or is_reserved(service):
            raise Refused(403, f"{peer} is not a service that may ask here")
        self._count(connection.serial)
        return Member(service, connection.serial)

    def _count(self, serial: int) -> None:
        """Refused where the holders of this certificate ask too much."""
        bucket, now = self._requests.pop(serial, None) or TokenBucket(REQUESTS_PER_S, REQUESTS_BURST), self._now()
        self._requests[serial] = bucket
        if len(self._requests) > MEMBERS_MAX:
            del self._requests[next(iter(self._requests))]
        if not bucket.take(now):
            raise Refused(429, "too many requests with this certificate", bucket.ready_at(now) - now)


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
