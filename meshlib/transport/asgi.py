"""The ASGI entry adapter: a request becomes a Call, goes down the server stack, and its leaf runs the application.

Rules:
  * identity is the connection's, put into `scope["state"]["meshlib.peer"]` by `transport.uvicorn.PeerProtocol`; in
    `strict` a request without one is refused (403 `identity`): fail closed, never a header instead;
  * the mesh starts before the application's lifespan and stops after it; an application without lifespan just works;
  * an error of our tree that escapes before the response began is a problem document; after it began, it is raised, and
    the server closes the connection;
  * pure ASGI: no task and no queue per layer.
Sources: ASGI 3.0 (HTTP, websocket, lifespan), starlette's `ServerErrorMiddleware`, FAULTS F21, F26.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from ..call import Call, Reply
from ..errors import MeshError, TransportError
from ..served import SERVED
from ..stack import Service
from ..telemetry.traceparent import parse_traceparent, parse_tracestate
from .admission import InFlight
from .headers import NO_RETRY, PEER, read_served, sift, without_own
from .lifespan import Lifespan
from .refusal import EXCHANGE, Refusal, refusal_of, refuse

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("meshlib.transport")

NO_IDENTITY = "this service speaks only to callers with a verified identity (mTLS); the connection has none"
POLICY_VIOLATION = 1008
"""RFC 6455 §7.4.1: the close code of a refused websocket."""


class Host(Protocol):
    """What the server side needs of a mesh.

    `strict`: only callers with a verified identity. `listener()`: the server's TLS context; None: mTLS is disabled.
    `server_service` binds the server stack around a leaf. `startup`, `shutdown` and `start` (the blocking twin, for
    WSGI) are idempotent. `listens_on`: the server accepts at `address`, '' where it does not say. `draining` is set by
    the server that shuts down. `max_request_body`: bytes.
    """

    draining: bool
    now: Callable[[], float]
    in_flight: InFlight

    @property
    def name(self) -> str: ...
    @property
    def trust_domain(self) -> str: ...
    @property
    def strict(self) -> bool: ...
    @property
    def max_request_body(self) -> int: ...
    @property
    def loopback_only(self) -> bool: ...
    def server_service(self, leaf: Service) -> Service: ...
    def listener(self) -> ssl.SSLContext | None: ...
    def start(self) -> None: ...
    def listens_on(self, address: str) -> None: ...
    async def startup(self) -> None: ...
    async def shutdown(self) -> None: ...


class MeshAsgi:
    """`app` behind the server stack of `host`; an ASGI application itself. `failure`: why its lifespan failed."""

    def __init__(self, app: AsgiApp, host: Host) -> None:
        self.app, self.host = app, host
        self.failure = ""
        self._service: Service | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await Lifespan(self, scope, receive, send).run()
        elif scope["type"] in ("http", "websocket"):
            await self._serve(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def started(self) -> Service:
        """The bound server stack. Starts the mesh where the server has no lifespan (first use)."""
        if self._service is None:
            await self.host.startup()
            self._service = self.host.server_service(self._leaf)
        return self._service

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        host, state = self.host, scope.get("state") or {}
        service = self._service or await self.started()
        peer = state.get(PEER)
        exchange = Exchange(host, scope, receive, send)
        if peer is None and host.strict:
            await exchange.refuse(refuse(403, "identity", NO_IDENTITY))
            return
        sifted = sift(scope["headers"])
        served = exchange.served = read_served(sifted.mesh, peer, host.now)
        exchange.scope = {**scope, "headers": sifted.fields, "state": {**state, PEER: peer}}
        call = _call(host, exchange.scope, exchange)
        if sifted.parents:
            call.trace = _trace_of(sifted.parents, sifted.states)
        token, answering = SERVED.set(served), EXCHANGE.set(exchange)
        try:
            if sifted.declared > exchange.body_max:
                await exchange.refuse_body(begun=False)
            else:
                await service(call)
        except Exception as error:
            if exchange.ended:
                # Raised, the server would close the connection, unannounced, under the caller's next request.
                _log.error("the application raised after its response", exc_info=error)
            elif isinstance(error, MeshError) and not exchange.begun:
                await exchange.refuse(refusal_of(error))
            elif not exchange.over:
                raise
        finally:
            EXCHANGE.reset(answering)
            SERVED.reset(token)

    async def _leaf(self, call: Call) -> Reply:
        exchange: Any = call.body
        await self.app(exchange.scope, exchange.receive, exchange.send)
        return Reply(exchange.status or 500, exchange.headers)


class Exchange:
    """One request and its response on their way through the stack: what a served call's `body` is.

    `error`: what a handler's guard refused with; it takes the place of the 500 a framework makes of it. `begun`: a byte
    of the response was handed to the server. `ended`: the last one was. `over`: the mesh has answered itself; whatever
    the application still sends goes nowhere.
    """

    framed = True
    __slots__ = (
        "_receive", "_send", "begun", "body_max", "ended", "error", "headers", "host", "over", "received", "scope",
        "served", "status",
    )  # fmt: skip

    def __init__(self, host: Host, scope: Scope, receive: Receive, send: Send) -> None:
        self.host, self.scope, self._receive, self._send = host, scope, receive, send
        self.served: Any = None
        self.error: MeshError | None = None
        self.status, self.received, self.body_max = 0, 0, host.max_request_body
        self.headers: list[tuple[bytes, bytes]] = []
        self.begun = self.ended = self.over = False

    def pieces(self) -> Any:
        """The request's body belongs to the application; nothing in a server stack reads it."""
        raise RuntimeError("the body of a served call is read by the application, through ASGI")

    async def receive(self) -> Message:
        """The server's next message; a body over the limit ends in 413 and an error in the application."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            if self.received > self.body_max:
                await self.refuse_body(begun=True)
                raise too_large(self.host)
        return message

    async def send(self, message: Message) -> None:
        """Pass on what the application sends; the start of a response gets the mesh's own fields, and
        none but those.
        """
        if self.over:
            return
        kind = message["type"]
        if kind == "http.response.start":
            if self.error is not None and message["status"] == 500:
                await self.refuse(refusal_of(self.error))
                return
            self.begun, self.status = True, message["status"]
            self.headers = without_own(message.get("headers", ())) + self._own_fields()
            message = {**message, "headers": self.headers}
        elif kind == "websocket.accept":
            self.begun, self.status = True, 101
            if message.get("headers"):
                message = {**message, "headers": without_own(message["headers"])}
        elif kind == "websocket.close":
            self.status = self.status or 403
        await self._send(message)
        if kind == "http.response.body" and not message.get("more_body", False):
            self.ended = True

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in the application's place, if nothing was answered yet."""
        if not self.begun and not self.over:
            self.status = refusal.status
            if self.scope["type"] == "http":
                fields = [*refusal.headers, *self._own_fields()]
                await self._send({"type": "http.response.start", "status": refusal.status, "headers": fields})
                await self._send({"type": "http.response.body", "body": refusal.body})
            else:
                await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": ""})
        self.over = True

    async def refuse_body(self, *, begun: bool) -> None:
        """413; the connection is closed, so that the rest of the body need not be read. `begun`: in mid-body, when the
        application may have done something already.
        """
        answer = refusal_of(too_large(self.host), begun=begun)
        await self.refuse(Refusal(answer.status, (*answer.headers, (b"connection", b"close")), answer.body))

    def _own_fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        if self.status >= 500 and self.served is not None and self.served.spent:
            fields.append((NO_RETRY, b"1"))
        if self.host.draining:
            fields.append((b"connection", b"close"))
        return fields


def remote_trace(call: Call) -> Any:
    """The caller's place in its trace, as the call's headers say; None: there is none to believe."""
    return _trace_of(call.header("traceparent"), call.header("tracestate"))


def too_large(host: Host) -> TransportError:
    """A body over the limit, as an error of our tree: it becomes 413."""
    message = f"the request body is larger than {host.max_request_body} bytes, the limit of {host.name!r}"
    return TransportError(message, phase="read", cause="too_large", sent=False)


def _trace_of(parents: list[str], states: list[str]) -> Any:
    trace = parse_traceparent(parents)
    if trace is not None and states:
        trace.state = parse_tracestate(states)
    return trace


def _call(host: Host, scope: Scope, exchange: Exchange) -> Call:
    target = scope.get("raw_path") or scope["path"].encode("utf-8")
    if scope["query_string"]:
        target = b"%b?%b" % (target, scope["query_string"])
    lines = b"".join([b"%b: %b\r\n" % field for field in scope["headers"]])
    call = Call(host.name, scope.get("method", "GET"), target, lines, exchange, served=exchange.served)
    call.started = host.now()
    return call
