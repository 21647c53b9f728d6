"""The edge: HTTP/1.1 from outside, through the server stack, by the routes of a gateway, out through the client stack.

What comes from outside is believed in nothing: `x-meshlib-*`, `x-envoy-*` and `x-forwarded-client-cert` are removed in
every spelling, hop-by-hop fields end here (RFC 9110 §7.6.1), and a path that two readers may read differently is
refused with 400 (dot segments, //, a backslash, an encoded slash, dot, backslash or NUL: CVE-2021-31920 and its like);
a fragment is cut off. The backend gets `x-forwarded-for` with the peer's address appended, and `x-forwarded-proto` and
`-host` of the listener and the request. A caller that goes away ends its call, wherever that is. Bodies stream in each
direction, not in both at once: an answer that begins ends the sending of its request.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from .call import Call
from .config.model import GATEWAY
from .errors import ConfigError, DeadlineExceeded, MeshError, Rejected, TransportError
from .host import ServerHost
from .policy.listener import listener_of
from .policy.refusal import refusal
from .policy.request import bare_host
from .served import SERVED
from .translation import listeners_of
from .transport.asgi import MeshAsgi
from .transport.headers import sift
from .transport.serving import MeshServer

if TYPE_CHECKING:
    from .call import Fields, Reply
    from .config import MeshConfig
    from .engine import Engine
    from .mesh import Mesh
    from .policy.listener import Listener

    AsgiScope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BUFFERED_BODY_MAX = 64 * 1024
"""Bytes of a declared body that is read first, so that the request can be tried again; a longer one streams."""

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
     b"trailer", b"transfer-encoding", b"upgrade")
)  # fmt: skip
_FORWARDED = frozenset((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host"))
_AMBIGUOUS = re.compile(rb"//|/\.{1,2}(?:/|$)|%2f|%5c|%00|%2e|\\", re.IGNORECASE)
_BODILESS = frozenset((204, 304))
CALLER_GONE = 499
"""The status that is counted for a call whose caller went away (nginx)."""


class Gateway:
    """The routes of the gateway `name` as an ASGI application. `port`: that its listeners are chosen by; None: any."""

    def __init__(self, engine: Engine, name: str, port: int | None = None) -> None:
        self._engine, self._owner, self._port = engine, GATEWAY + name, port
        self._name = name
        self._of: tuple[Any, tuple[Listener, ...]] = (None, ())

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP is refused."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        caller = Caller(receive)
        try:
            async with caller:
                reply = await self._reply(scope, caller)
                caller.watch()  # an answer that comes before the end of the request ends the sending of it
                await _write(reply, send, head=scope["method"] == "HEAD")
        except CallerGone:
            await _write(refusal(CALLER_GONE, "caller_gone", "the caller went away"), send, head=True)

    async def _reply(self, scope: AsgiScope, caller: Caller) -> Reply:
        path: bytes = scope.get("raw_path") or scope["path"].encode("latin-1")
        if _AMBIGUOUS.search(path) or not path.startswith(b"/"):
            return refusal(400, "ambiguous_path", "the path can be read in more than one way")
        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        listener = listener_of(self._listeners(), bare_host(host), self._port)
        if listener is None:
            return refusal(404, "no_listener", "this gateway has no listener for the host")
        call = await _call(self._owner, scope, path, host, listener, caller)
        try:
            return await self._engine.scope_of_loop().service(self._owner)(call)
        except MeshError as error:
            return refusal(_status(error), error.kind, f"the gateway could not get an answer: {error.kind}")

    def _listeners(self) -> tuple[Listener, ...]:
        config = self._engine.policy.config
        if self._of[0] is not config:
            gateway = config.gateways.get(self._name)
            self._of = (config, () if gateway is None else listeners_of(gateway))
        return self._of[1]


class Outside:
    """Takes out of what comes from outside everything that only the mesh may say, before anything reads it."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Hand on what may pass."""
        if scope["type"] in ("http", "websocket"):
            kept = sift(scope["headers"]).fields
            scope = {**scope, "headers": [field for field in kept if not field[0].startswith(b"x-meshlib-")]}
        await self._app(scope, receive, send)


class GatewayHost(ServerHost):
    """The server side of a gateway: its callers are outside the mesh, and have no certificate of it."""

    @property
    def strict(self) -> bool:
        """Never."""
        return False


def chosen(config: MeshConfig, name: str) -> str:
    """The gateway of `config` that is meant: `name`, or '' for the only one. ConfigError says why there is none."""
    has = ", ".join(sorted(config.gateways)) or "none"
    if config.control is not None:
        raise ConfigError("a gateway whose policy is followed from `control` is not served by this release")
    if not name and len(config.gateways) == 1:
        return next(iter(config.gateways))
    if name not in config.gateways:
        what = f"there is no gateway {name!r} in the configuration" if name else "say which gateway with --name"
        raise ConfigError(f"{what}; it has {has}")
    return name


async def serve(mesh: Mesh, name: str, host: str, port: int, listening: Callable[[str], None]) -> None:
    """Serve the gateway `name`, which `chosen` gave, until a signal. `listening(address)`: once it does."""
    engine = mesh._engine
    own = GatewayHost(engine)
    own.own_server = True
    await own.startup()
    ports = {listener.port for listener in engine.policy.config.gateways[name].listeners}
    app = Gateway(engine, name, port if port in ports else None)

    def listens(address: str) -> None:
        own.listening = address
        listening(address)

    await MeshServer(
        Outside(MeshAsgi(app, own)), own, bind=own.bind_address(host), port=port, on_listening=listens
    ).serve()


class CallerGone(Exception):
    """The caller has closed its connection."""


class Caller:
    """Who asks, as a context: in it the task that serves is cancelled when the caller goes away, and CallerGone raised.

    While the request's body is read, that is seen there; afterwards one task waits for it.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False
        self._serving: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def pieces(self) -> AsyncIterator[bytes]:
        """The request's body, to its end. CallerGone where that does not come."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = True
                raise CallerGone
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body"):
                self.watch()
                return

    def watch(self) -> None:
        """Nobody reads the body any more: what still comes of it is dropped, until the caller goes."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._serving is not None:
            self._serving.cancel()

    async def __aenter__(self) -> Caller:
        self._serving = asyncio.current_task()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        serving, self._serving = self._serving, None
        if self._watching is not None:
            self._watching.cancel()
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        if self._gone and cancelled and serving is not None and serving.uncancel() == 0:
            raise CallerGone


class _Body:
    """A request's body that is sent on as it comes. `framed`: its length was not declared."""

    def __init__(self, caller: Caller, *, framed: bool) -> None:
        self._caller, self.framed = caller, framed

    def pieces(self) -> AsyncIterator[bytes]:
        """Until the request is over."""
        return self._caller.pieces()


async def _call(owner: str, scope: AsgiScope, path: bytes, host: str, listener: Listener, caller: Caller) -> Call:
    fields: list[tuple[bytes, bytes]] = scope["headers"]
    ends = _named_in_connection(fields) | _HOP_BY_HOP | _FORWARDED
    client = (scope.get("client") or ("",))[0]
    came = [value for name, value in fields if name == b"x-forwarded-for"]
    length = next((value for name, value in fields if name == b"content-length"), None)
    chunked = any(name == b"transfer-encoding" for name, _ in fields)
    ends.add(b"host")
    kept = [
        (b"host", host.encode("latin-1")),
        *(field for field in fields if field[0].replace(b"_", b"-") not in ends),  # to WSGI both spellings are one
        (b"x-forwarded-for", b", ".join([*came, client.encode("ascii", "replace")])),
        (b"x-forwarded-proto", listener.scheme.encode()),
        (b"x-forwarded-host", host.encode("latin-1")),
    ]
    body: Any
    if chunked:
        kept.append((b"transfer-encoding", b"chunked"))
        body = _Body(caller, framed=True)
    elif length is not None and int(length) > BUFFERED_BODY_MAX:
        body = _Body(caller, framed=False)
    else:
        body = b"".join([piece async for piece in caller.pieces()])
    query: bytes = scope.get("query_string", b"")
    call = Call(
        owner,
        scope["method"],
        path + (b"?" + query if query else b""),
        b"".join(b"%b: %b\r\n" % field for field in kept),
        body,
        streaming=True,
        served=SERVED.get(),
    )
    call.listener = listener
    return call


async def _write(reply: Reply, send: Send, *, head: bool) -> None:
    """The reply, piece by piece, as fast as the caller takes it; its connection is given back in any case."""
    fields = [(name.lower(), value) for name, value in reply.headers]
    ends = _named_in_connection(fields) | _HOP_BY_HOP
    headers = [field for field in fields if field[0] not in ends]
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        if reply.stream is not None:
            while not head and reply.status not in _BODILESS and (piece := await reply.stream.read()):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            reply.end()
        else:
            empty = head or reply.status in _BODILESS
            await send({"type": "http.response.body", "body": b"" if empty else reply.body})
    finally:
        await reply.discard()


def _named_in_connection(fields: Fields) -> set[bytes]:
    """What a Connection field says is hop-by-hop too, of fields with lower-case names."""
    return {token.strip().lower() for name, value in fields if name == b"connection" for token in value.split(b",")}


def _status(error: MeshError) -> int:
    if isinstance(error, DeadlineExceeded):
        return 504
    if isinstance(error, Rejected):
        return 429 if error.reason == "rate_limited" else 503
    if isinstance(error, TransportError) and error.phase != "connect":
        return 502
    return 503
