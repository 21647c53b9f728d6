"""The HTTP API as one ASGI application: who asks, what of whom, and the answer. What it decides, the plane does.

GET /healthz is for anyone. For everything else who.py decides, before the body is read and before it is said whether
there is such a path. A poll is held by this coroutine and the task that its request has anyway: while it waits, the
request's fields and body are gone, and nobody asks `receive`: the protocol says when the connection is lost. Bad input
is 4xx with a problem document and never more; what awaits the disk is bounded.
Sources: RFC 9110, RFC 9457; FAULTS F29, F38.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, NamedTuple, TypeVar

from ..errors import ConfigError, PermissionDenied
from ..transport.headers import HOST
from ..transport.refusal import Refusal, refuse
from . import messages as m
from . import status
from .issuance import RotationTooSoon
from .openapi import OPERATIONS, POLL, Operation, document
from .plane import ControlPlane, Ending
from .polls import Ended, PollsFull
from .protocol import CONNECTION, Connection
from .registry import TTL_S, RegistryFull, UnknownInstance
from .store import CertificateRevoked, Policy, PolicyChanged, StoreError, StoreFull, TokenRefused
from .watch import parse_policy
from .who import Caller, Member, Newcomer, Refused, address_of
from .writer import RETRY_AFTER_S, Busy

FULL_RETRY_AFTER_S = 30.0
"""When to come back after a bound on processes or instances was met, in seconds."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
T = TypeVar("T")
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = b"application/json"
_MEDIA = re.compile(rb"application/json(\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)
_ETAG = re.compile(rb'"([0-9]{1,16})"')
_ARGUED = {
    "/v1/tokens/{id}": re.compile("/v1/tokens/([0-9a-f]{12})"),
    "/v1/policy/history/{n}": re.compile("/v1/policy/history/([0-9]{1,16})"),
}
_BY_PATH: dict[str, dict[str, Operation]] = {}
for _operation in OPERATIONS:
    _BY_PATH.setdefault(_operation.path, {})[_operation.method] = _operation
    if _operation.method == "GET":
        _BY_PATH[_operation.path]["HEAD"] = _operation
del _operation
_POLLING = _BY_PATH[POLL]["POST"]

_log = logging.getLogger("meshlib.control")


class Answer(NamedTuple):
    """A 200. `body` is sent as it is."""

    body: bytes
    media: bytes = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Ask(NamedTuple):
    """A request whose caller is known. `message`: its body; None where the operation has none."""

    scope: Scope
    caller: Caller
    message: Any
    argument: str

    @property
    def member(self) -> Member:
        """The process that asks; of an operation for members."""
        assert isinstance(self.caller, Member)
        return self.caller


class _Gone(Exception):
    """The client left before its request had arrived."""


class Api:
    """`plane`: who does it. `stored`: the policy is set by PUT, not by a watched file."""

    def __init__(self, plane: ControlPlane, *, stored: bool) -> None:
        self.plane, self._stored, self._parsing = plane, stored, asyncio.Lock()
        self._openapi = Answer(json.dumps(document()).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != POLL or scope["method"] != "POST":
            await self._other(scope, receive, send)
            return
        plane, process, connection = self.plane, None, None
        try:
            process, held = plane.poll(*await self._asked_poll(scope, receive))
            if isinstance(held, bytes):
                answer: Answer | Refusal = Answer(held)
            else:
                scope["headers"].clear()
                connection = scope["state"][CONNECTION]
                connection.hold(process)
                ended = await held
                if ended is Ended.LOST:
                    return
                plane.gate.check(connection)
                answer = Answer(plane.reply(process, ended))
        except _Gone:
            return
        except Exception as error:
            answer = self._refusal(error, scope)
        finally:
            if process is not None:
                plane.polled(process)
            if connection is not None:
                connection.held = None
        await self._send(answer, scope, send)

    async def _asked_poll(self, scope: Scope, receive: Receive) -> tuple[Member, m.Poll]:
        member = self.plane.gate.admit(scope, _POLLING.role)
        assert isinstance(member, Member)
        return member, await self._message(_POLLING, member, scope, receive)

    async def _message(self, operation: Operation, caller: Caller, scope: Scope, receive: Receive) -> Any:
        """The message of a request, from somebody who is still who he was when it began."""
        if operation.body is None:
            return None
        body = await _body(scope, receive, operation.bytes_max)
        if isinstance(caller, Member):
            self.plane.gate.check(scope["state"][CONNECTION])
        return m.parse(operation.body, body)

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            try:
                answer: Answer | Refusal = await self._answered(scope, receive)
            except _Gone:
                return
            except Exception as error:
                answer = self._refusal(error, scope)
            await self._send(answer, scope, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][HOST] = self.plane.listening
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answered(self, scope: Scope, receive: Receive) -> Answer | Refusal:
        path, argument = scope["path"], ""
        path = "" if path in _ARGUED else path  # the form of a path is none
        for form, pattern in _ARGUED.items():
            if named := pattern.fullmatch(path):
                path, argument = form, named[1]
        methods = _BY_PATH.get(path, {})
        operation = methods.get(scope["method"])
        caller = self.plane.gate.admit(scope, operation.role if operation else "member or operator")
        if operation is None:
            return _no_operation(path, methods)
        handler: Callable[[Ask], Awaitable[Answer]] = getattr(self, operation.does)
        try:
            return await handler(Ask(scope, caller, await self._message(operation, caller, scope, receive), argument))
        except (TokenRefused, TooLarge, NotJson, ValueError):
            if isinstance(caller, Newcomer):
                self.plane.gate.failed(address_of(scope))
            raise

    # Processes

    async def health(self, ask: Ask) -> Answer:
        """`ok`."""
        return Answer(b"ok", b"text/plain; charset=utf-8")

    async def enrol(self, ask: Ask) -> Answer:
        """A certificate for a join token."""
        assert isinstance(ask.caller, Newcomer)
        asked: m.Enrol = ask.message
        token = (ask.caller.token_id, ask.caller.secret_sha256)
        plane = self.plane
        who = (asked.instance or "", asked.service or "")
        issued = await plane.writer.ask(plane.issuer.enrol, *token, _ascii(asked.csr), *who)
        _log.info("join token %s: a process enrolled from %s", token[0], address_of(ask.scope))
        return _issued(issued)

    async def renew(self, ask: Ask) -> Answer:
        """A certificate for one that is valid."""
        asked: m.Renew = ask.message
        issuer, member = self.plane.issuer, ask.member
        return _issued(await self.plane.writer.ask(issuer.renew, member.service, member.serial, _ascii(asked.csr)))

    async def register(self, ask: Ask) -> Answer:
        """The caller's process serves."""
        await self.plane.register(ask.member, ask.message)
        return _json(lease_s=TTL_S)

    async def drain(self, ask: Ask) -> Answer:
        """It takes no new calls."""
        await self.plane.drain(ask.member, ask.message.instance)
        return _json()

    async def deregister(self, ask: Ask) -> Answer:
        """It is gone."""
        await self.plane.deregister(ask.member, ask.message.instance)
        return _json()

    # The operator

    async def services(self, ask: Ask) -> Answer:
        """Services and their instances."""
        page, plane = _page(ask.scope), self.plane
        return _json(**status.services(plane.catalog, plane.registry.instances(), page, plane.now()))

    async def status(self, ask: Ask) -> Answer:
        """Processes, and what they have applied."""
        page, plane = _page(ask.scope), self.plane
        policy = plane.policy
        return _json(
            mesh=plane.mesh,
            epoch=plane.catalog.epoch,
            policy={"n": policy.n, "at": policy.at, "source": policy.source},
            edits_kept_out=plane.edits_kept_out,
            problems=_problems(plane.problems),
            **status.processes(plane.catalog, plane.polls, page, plane.now()),
        )

    async def policy(self, ask: Ask) -> Answer:
        """The policy in force."""
        return _policy(self.plane.policy)

    async def history(self, ask: Ask) -> Answer:
        """The policies that were in force."""
        found = await self.plane.writer.ask(self.plane.store.history)
        return _json(policies=[{"n": one.n, "at": one.at, "source": one.source} for one in found])

    async def past_policy(self, ask: Ask) -> Answer:
        """One of them, with its document."""
        found = await self.plane.writer.ask(self.plane.store.policy, int(ask.argument))
        if found is None:
            raise UnknownInstance(f"there is no policy with version {ask.argument}, or none any more")
        return _policy(found)

    async def put_policy(self, ask: Ask) -> Answer:
        """Another policy."""
        if not self._stored:
            raise PolicyConflict("this config service serves a watched file (policy_source: file): edit that")
        expected = _expected(ask.scope)
        async with self._parsing:
            read = await asyncio.to_thread(parse_policy, ask.message.document, "<document>")
        n = await self.plane.publish_policy(read, expected)
        return _etagged(_json(n=n), n)

    async def tokens(self, ask: Ask) -> Answer:
        """Join tokens that may still be used."""
        found = await self.plane.writer.ask(self.plane.store.tokens, self.plane.wall())
        return _json(tokens=[token._asdict() for token in found])

    async def create_token(self, ask: Ask) -> Answer:
        """A join token, shown this once."""
        asked: m.NewToken = ask.message
        expires = self.plane.wall() + asked.ttl_s
        token = await self.plane.writer.ask(self.plane.issuer.create_token, asked.service, asked.uses, asked.ttl_s)
        _log.info("join token %s: %s, %d uses, %.0f s", token.id, asked.service, asked.uses, asked.ttl_s)
        return _json(id=token.id, token=str(token), service=asked.service, uses=asked.uses, expires=expires)

    async def remove_token(self, ask: Ask) -> Answer:
        """A join token is revoked."""
        if not await self.plane.writer.ask(self.plane.store.remove_token, ask.argument):
            raise UnknownInstance(f"there is no join token {ask.argument}")
        _log.info("join token %s is revoked", ask.argument)
        return _json()

    async def ca(self, ask: Ask) -> Answer:
        """The roots, and what is revoked."""
        plane = self.plane
        roots = await self._authoritys(plane.writer.ask(plane.authority.read))
        named = {"coming": roots.coming, "signer": roots.signer, "previous": roots.previous}
        return _json(
            generation=roots.generation,
            rotating=roots.coming is not None,
            roots=[
                {"role": role, "sha256": root.sha256, "not_after": root.not_after}
                for role, root in named.items()
                if root is not None
            ],
            revoked=sorted(f"{serial:x}" for serial in plane.gate.revoked),
        )

    async def rotate(self, ask: Ask) -> Answer:
        """New leaves, or a new root."""
        _log.info("the operator rotates %s", "the root" if ask.message.root else "the leaves")
        return _json(generation=await self._authoritys(self.plane.rotate(ask.message.root, ask.message.force)))

    async def revoke(self, ask: Ask) -> Answer:
        """A leaf is revoked, and what was renewed from it."""
        serials = await self.plane.revoke(int(ask.message.serial, 16))
        _log.info("revoked: %s", ", ".join(f"{serial:x}" for serial in serials))
        return _json(serials=[f"{serial:x}" for serial in serials])

    async def _authoritys(self, work: Awaitable[T]) -> T:
        """What is done with the file of the authority. FileUnusable, with a sentence, where that file will not do."""
        try:
            return await work
        except (OSError, ValueError) as error:
            _log.error("the file of the authority cannot be used: %s", error)
            raise FileUnusable(str(error)) from error

    async def openapi(self, ask: Ask) -> Answer:
        """The description of all this."""
        return self._openapi

    # Answers

    async def _send(self, answer: Answer | Refusal, scope: Scope, send: Send) -> None:
        if isinstance(answer, Refusal):
            status_code, body, headers = answer.status, answer.body, [*answer.headers]
        else:
            status_code, body = 200, answer.body
            headers = [(b"content-type", answer.media), (b"content-length", b"%d" % len(body)), *answer.headers]
        headers.append((b"cache-control", b"no-store"))
        connection = scope["state"].get(CONNECTION)
        if self.plane.draining or not (isinstance(connection, Connection) and connection.keep):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, error: Exception, scope: Scope) -> Refusal:
        """The answer to a request that ended in `error`."""
        if isinstance(error, ConfigError):
            problems = _problems(error.problems)
            return _refuse(400, "config", "the policy is not valid" if problems else str(error), problems=problems)
        if isinstance(error, PolicyChanged):
            return _refuse(412, _KINDS[412], f"{error}: read it again, and put yours in its place", n=error.n)
        if isinstance(error, TokenRefused):
            error = Refused(401, f"this join token is {error.reason}; make a new one: meshlib token create")
        if isinstance(error, Refused):
            refusal = _refuse(error.status, _KINDS[error.status], str(error), retry_after_s=error.retry_after_s)
            challenge = ((b"www-authenticate", b'Bearer realm="meshlib"'),) if error.status == 401 else ()
            return Refusal(error.status, (*refusal.headers, *challenge), refusal.body)
        if isinstance(error, OSError):
            _log.error("%s %s: %s", scope["method"], scope["path"], error)
        for kind, (status_code, text, retry_after_s) in _STATUSES.items():
            if isinstance(error, kind):
                return _refuse(status_code, _KINDS[status_code], text or str(error), retry_after_s=retry_after_s)
        _log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
        return _refuse(500, _KINDS[500], "the config service has failed; see its log")


class PolicyConflict(Exception):
    """The policy may not be set like this, now. The text says why."""


class NoVersion(Exception):
    """A policy is to be set, and it is not said in the place of which."""


class FileUnusable(Exception):
    """A file of the service's own will not do. The text says why, and what to do."""


class TooLarge(Exception):
    """A body beyond its bound."""


class NotJson(Exception):
    """A body that is not said to be JSON."""


_KINDS = {
    400: "malformed", 401: "unauthenticated", 403: "denied", 404: "unknown", 405: "method", 409: "conflict",
    412: "conflict", 413: "too_large", 415: "not_json", 428: "version_required", 429: "rate_limited",
    500: "internal", 503: "busy",
}  # fmt: skip
_STATUSES: dict[type[Exception], tuple[int, str, float | None]] = {
    TooLarge: (413, "", None),
    NotJson: (415, "the body must be application/json in UTF-8, without a content coding", None),
    PermissionDenied: (403, "", None),
    CertificateRevoked: (403, "", None),
    UnknownInstance: (404, "", None),
    PolicyConflict: (409, "", None),
    RotationTooSoon: (409, "", None),
    NoVersion: (428, "If-Match is missing: the ETag of the policy that yours replaces, or * for any", None),
    FileUnusable: (503, "", RETRY_AFTER_S),
    StoreFull: (503, "", FULL_RETRY_AFTER_S),
    PollsFull: (503, "too many processes poll, of this service or in all", FULL_RETRY_AFTER_S),
    RegistryFull: (503, "", FULL_RETRY_AFTER_S),
    Ending: (503, "this config service is ending; another one, or the next, has the answer", RETRY_AFTER_S),
    Busy: (503, "too many requests wait for the disk", RETRY_AFTER_S),
    StoreError: (503, "the store cannot be used now; see the log of the config service", RETRY_AFTER_S),
    OSError: (503, "a file cannot be used now; see the log of the config service", RETRY_AFTER_S),
    ValueError: (400, "", None),
}


async def _body(scope: Scope, receive: Receive, bytes_max: int) -> bytes:
    """The whole body: NotJson, TooLarge (unread, where its length is said), _Gone."""
    fields = [field for field in scope["headers"] if field[0] in (b"content-type", b"content-encoding")]
    if len(fields) != 1 or fields[0][0] != b"content-type" or not _MEDIA.fullmatch(fields[0][1].strip()):
        raise NotJson
    if any(name == b"content-length" and int(value) > bytes_max for name, value in scope["headers"]):
        raise TooLarge(f"a body has at most {bytes_max} bytes here")
    pieces, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        piece = message.get("body", b"")
        size += len(piece)
        if size > bytes_max:
            raise TooLarge(f"a body has at most {bytes_max} bytes here")
        pieces.append(piece)
        more = message.get("more_body", False)
    return b"".join(pieces)


def _no_operation(path: str, methods: Mapping[str, Operation]) -> Refusal:
    if not methods:
        return _refuse(404, _KINDS[404], "there is no such path")
    allowed = ", ".join(sorted(methods))
    refusal = _refuse(405, _KINDS[405], f"{path} takes {allowed}")
    return Refusal(405, (*refusal.headers, (b"allow", allowed.encode("ascii"))), refusal.body)


def _refuse(status_code: int, kind: str, message: str, **more: Any) -> Refusal:
    return refuse(status_code, kind, message, refused=False, **more)


def _json(**content: Any) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode())


def _policy(policy: Policy) -> Answer:
    return _etagged(_json(n=policy.n, source=policy.source, document=policy.document), policy.n)


def _etagged(answer: Answer, n: int) -> Answer:
    return answer._replace(headers=((b"etag", b'"%d"' % n),))


def _issued(issued: Any) -> Answer:
    return _json(
        chain=issued.chain_pem.decode("ascii"), bundle=issued.bundle_pem.decode("ascii"), generation=issued.generation
    )


def _ascii(csr: str) -> bytes:
    """A CSR is PEM, which is ASCII. ValueError."""
    if not csr.isascii():
        raise ValueError("csr: it is not PEM")
    return csr.encode("ascii")


def _page(scope: Scope) -> status.Page:
    return status.page_of(scope.get("query_string", b""))


def _expected(scope: Scope) -> int | None:
    """The version of If-Match; None where any will do. NoVersion, Malformed."""
    found = [value.strip() for name, value in scope["headers"] if name == b"if-match"]
    if not found:
        raise NoVersion
    if found == [b"*"]:
        return None
    etag = _ETAG.fullmatch(found[0]) if len(found) == 1 else None
    if etag is None:
        raise m.Malformed('If-Match is the version in quotes, such as "1700000000000", or *')
    return int(etag[1])


def _problems(problems: Any) -> list[dict[str, Any]]:
    fields = ("file", "line", "column", "path", "message")
    return [{field: getattr(problem, field) for field in fields} for problem in problems]
