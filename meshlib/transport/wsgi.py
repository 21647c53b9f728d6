"""The WSGI entry adapter: the same Call, the same server stack, driven on a thread by one `send(None)`.

The peer is the connection's: from the ASGI scope under `a2wsgi` (put there by `transport.uvicorn.PeerProtocol`), or
from the TLS socket under gunicorn's threads; never from a header or an environ value of the server's own making.
Everything else is as in `transport.asgi`. WSGI has no lifespan: the mesh starts at first use. Under an event loop a
request takes a thread when its body is there, so that slow uploads hold none.
Sources: PEP 3333, a2wsgi, gunicorn gthread (`environ["gunicorn.socket"]`).
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from dataclasses import replace
from http import HTTPStatus
from itertools import chain
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from urllib.parse import quote

from ..call import Call, Reply
from ..errors import MeshError
from ..identity.tls import peer_of
from ..runtime.blocking import drive
from ..served import SERVED
from ..stack import Service
from .asgi import NO_IDENTITY, AsgiApp, Host, Message, Receive, Scope, Send, remote_trace, too_large
from .headers import NO_RETRY, PEER, read_served, sift, strip_environ, without_own
from .refusal import EXCHANGE, Refusal, refusal_of, refuse

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

_PATH_SAFE = "/:@!$&'()*+,;=~-._"

WSGI_THREADS = 40
"""Threads that serve a WSGI application under an event loop; anyio's default for the same purpose."""
BODY_IN_MEMORY_MAX = 1 << 20
"""A request body beyond this waits for its thread in a temporary file."""
BODY_BYTES_MAX = 100 << 20
"""The largest body where there is no mesh to say; the default of `limits.max_request_body`."""
BODY_PIECE = 256 * 1024


class MeshWsgi:
    """`app` behind the server stack of `host`; a WSGI application itself."""

    def __init__(self, app: WsgiApp, host: Host) -> None:
        self.app, self.host = app, host
        self._service: Service | None = None
        self._starting = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        service = self._service or self._started()
        host, peer = self.host, peer_of_environ(environ)
        if peer is None and host.strict:
            return _answer(refuse(403, "identity", NO_IDENTITY), start_response)
        strip_environ(environ)
        environ[PEER] = peer
        headers = _headers(environ)
        served = read_served(sift(headers).mesh, peer, host.now)
        exchange = _Exchange(environ, start_response, host, served)
        target = _target(environ)
        lines = b"".join([b"%b: %b\r\n" % field for field in headers])
        call = Call(host.name, environ["REQUEST_METHOD"], target, lines, exchange, served=served)
        call.started = host.now()
        call.trace = remote_trace(call)
        token, answering = SERVED.set(served), EXCHANGE.set(exchange)
        try:
            if int(environ.get("CONTENT_LENGTH") or 0) > host.max_request_body:
                raise too_large(host)
            reply = drive(service(call))
            return _Body(exchange, reply, copy_context())
        except MeshError as error:
            if exchange.begun:
                raise
            return exchange.refuse(refusal_of(error, begun=exchange.input.exceeded))
        finally:
            EXCHANGE.reset(answering)
            SERVED.reset(token)

    def _started(self) -> Service:
        with self._starting:
            if self._service is None:
                self.host.start()
                self._service = self.host.server_service(self._leaf)
            return self._service

    async def _leaf(self, call: Call) -> Reply:
        exchange: Any = call.body
        iterable = self.app(exchange.environ, exchange.start_response)
        try:
            # PEP 3333: the status is known once the first piece is there, and not always before.
            pieces = iter(iterable)
            first = next(pieces, b"")
        except BaseException:
            _close(iterable)
            raise
        exchange.body, exchange.iterable = chain((first,), pieces), iterable
        return Reply(exchange.status or 500, exchange.headers, stream=exchange)


class _Exchange:
    """One request and its response; a served call's `body`. The response's pieces go to the server untouched."""

    framed = True
    __slots__ = (
        "_start", "begun", "body", "environ", "error", "headers", "host", "input", "iterable", "served", "status",
    )  # fmt: skip

    def __init__(self, environ: Environ, start_response: StartResponse, host: Host, served: Any) -> None:
        self.environ, self._start, self.host, self.served = environ, start_response, host, served
        self.begun, self.status, self.error = False, 0, None  # type: bool, int, MeshError | None
        self.body: Iterator[bytes] = iter(())
        self.iterable: Iterable[bytes] = ()
        self.headers: list[tuple[bytes, bytes]] = []
        self.input = environ["wsgi.input"] = _Input(environ["wsgi.input"], host)

    def pieces(self) -> Any:
        raise RuntimeError("the body of a served call is read by the application, through WSGI")

    def start_response(self, status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
        if self.error is not None and status.startswith("500"):
            raise self.error
        self.begun, self.status = True, int(status[:3])
        self.headers = without_own((n.encode("latin-1"), v.encode("latin-1")) for n, v in headers)
        if self.status >= 500 and self.served.spent:
            self.headers.append((NO_RETRY, b"1"))
        return self._start(status, [(n.decode("latin-1"), v.decode("latin-1")) for n, v in self.headers], *exc_info)

    def refuse(self, refusal: Refusal) -> list[bytes]:
        """Answer in the application's place."""
        spent = ((NO_RETRY, b"1"),) if refusal.status >= 500 and self.served.spent else ()
        return _answer(replace(refusal, headers=(*refusal.headers, *spent)), self._start)

    async def read(self) -> bytes:
        """The next piece of the response: for whoever discards it."""
        return next(self.body, b"")

    async def aclose(self) -> None:
        _close(self.iterable)


class _Body:
    """The response's body: each piece is made in the request's context; its end ends the call."""

    __slots__ = ("_context", "_exchange", "_reply")

    def __init__(self, exchange: _Exchange, reply: Reply, context: Context) -> None:
        self._exchange, self._reply, self._context = exchange, reply, context

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return self._context.run(next, self._exchange.body)

    def close(self) -> None:
        try:
            self._context.run(_close, self._exchange.iterable)
        finally:
            self._reply.end()


class _Input:
    """`wsgi.input` that counts: more than the limit is an error in the application's read, and 413."""

    __slots__ = ("_host", "_left", "_stream")

    def __init__(self, stream: Any, host: Host) -> None:
        self._stream, self._host, self._left = stream, host, host.max_request_body

    @property
    def exceeded(self) -> bool:
        """Has the application read beyond the limit?"""
        return self._left < 0

    def read(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            size = self._left + 1
        return self._count(self._stream.read(min(size, self._left + 1)))

    def readline(self, size: int = -1) -> bytes:
        if size is None or size < 0:
            size = self._left + 1
        return self._count(self._stream.readline(min(size, self._left + 1)))

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _count(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise too_large(self._host)
        return piece


def peer_of_environ(environ: Environ) -> Any:
    """The verified peer of the connection a WSGI request came on, or None."""
    scope = environ.get("asgi.scope")
    if scope is not None:
        return (scope.get("state") or {}).get(PEER)
    return peer_of(environ.get("gunicorn.socket"))


def looks_like_wsgi(app: Any) -> bool:
    """Is it a WSGI application (a callable of two arguments) rather than an ASGI one?"""
    call = app if inspect.isfunction(app) or inspect.ismethod(app) else getattr(app, "__call__", None)  # noqa: B004
    if inspect.iscoroutinefunction(call) or inspect.isclass(app):
        return False
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return len(positional) == 2


def as_asgi(app: WsgiApp, max_body: int = BODY_BYTES_MAX) -> AsgiApp:
    """A WSGI application as an ASGI one (a2wsgi, 40 threads). It begins when the whole body is there: at most
    `max_body` bytes, more is 413. Behind a mesh `max_body` is sys.maxsize: the limit is the mesh's.
    """
    from a2wsgi import WSGIMiddleware

    bridge: Any = WSGIMiddleware
    adapted = bridge(_with_peer(app), workers=WSGI_THREADS)

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await adapted(scope, receive, send)
            return
        with SpooledTemporaryFile(max_size=BODY_IN_MEMORY_MAX) as body:
            size = await _read_whole(receive, body, max_body)
            if size is None:
                return  # the client has gone: there is nobody to answer
            if size > max_body:
                refusal = refuse(413, "transport", f"the request body is larger than {max_body} bytes")
                fields = [*refusal.headers, (b"connection", b"close")]
                await send({"type": "http.response.start", "status": 413, "headers": fields})
                await send({"type": "http.response.body", "body": refusal.body})
                return

            async def replay() -> Message:
                piece = body.read(BODY_PIECE)
                return {"type": "http.request", "body": piece, "more_body": bool(piece)}

            await adapted(scope, replay, send)

    return asgi


async def _read_whole(receive: Receive, body: IO[bytes], most: int) -> int | None:
    """Read the request's body, until it is over `most`; its size. None: the client has gone."""
    size, more = 0, True
    while more and size <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        size += body.write(message.get("body", b""))
        more = message.get("more_body", False)
    body.seek(0)
    return size


def _close(iterable: Iterable[bytes]) -> None:
    close = getattr(iterable, "close", None)
    if close is not None:
        close()


def _with_peer(app: WsgiApp) -> WsgiApp:
    def wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ[PEER] = peer_of_environ(environ)
        # a2wsgi's input ends where the body ends; without this werkzeug takes a chunked body for an empty one.
        environ["wsgi.input_terminated"] = True
        return app(environ, start_response)

    return wsgi


def _answer(refusal: Refusal, start_response: StartResponse) -> list[bytes]:
    start_response(f"{refusal.status} {HTTPStatus(refusal.status).phrase}", refusal.text_headers)
    return [refusal.body]


def _headers(environ: Environ) -> list[tuple[bytes, bytes]]:
    fields = [
        (key[5:].replace("_", "-").lower().encode("latin-1"), str(value).encode("latin-1", "replace"))
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    for key, name in (("CONTENT_TYPE", b"content-type"), ("CONTENT_LENGTH", b"content-length")):
        if environ.get(key):
            fields += [(name, str(environ[key]).encode("latin-1", "replace"))]
    return fields


def _target(environ: Environ) -> bytes:
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw and raw.startswith("/"):
        return str(raw).encode("latin-1", "replace")
    path = quote(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), safe=_PATH_SAFE, encoding="latin-1")
    return (path + ("?" + environ["QUERY_STRING"] if environ.get("QUERY_STRING") else "")).encode("latin-1")
