"""The connection: uvicorn's httptools protocol with the peer's identity, TLS of the mesh's own, and limits.

Rules:
  * the verified peer of the connection (a SpiffeId, or None) is in `scope["state"]["meshlib.peer"]`; nothing else is;
  * a connection to a mesh with mTLS starts TLS here, with the mesh's own context, so that any uvicorn command line will
    do. `permissive` also takes plaintext: the first byte tells (22 is a TLS handshake, no HTTP method begins so);
  * a request begins only when every byte received so far was well-formed: what is refused never ran;
  * everything has a bound: head, fields, request line, pipelined requests, connections of one address, and the time
    for the handshake, the head, and each stretch of the body.
Sources: RFC 9112, FAULTS F20–F22 (uvicorn#157), llhttp strict, Envoy `request_headers_timeout`.
"""

from __future__ import annotations

import asyncio
import collections
import re
import ssl
import weakref
from asyncio import sslproto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..identity.tls import peer_of
from . import tcp
from .headers import HOST, PEER

REASONS = {
    400: "the request is not well-formed HTTP/1.1",
    408: "the request did not arrive in time",
    414: "the request target is too long",
    431: "the request header is too large",
    501: "the transfer coding is not supported",
    505: "only HTTP/1.0 and HTTP/1.1 are spoken here",
}
_BAD_CODING = re.compile(rb"\ntransfer-encoding[ \t]*:[ \t]*(?!chunked[ \t]*\r?\n)[^\r\n]*\r?\n", re.IGNORECASE)
_TLS_HANDSHAKE = b"\x16"


class _RefusedError(Exception):
    """Ends the parser's work from inside a callback; `PeerProtocol.status` says why."""


class PeerProtocol(HttpToolsProtocol):
    """`uvicorn --http meshlib.transport.uvicorn:PeerProtocol`. Limits are class attributes: bytes, counts, seconds."""

    gives_peers = True

    HEAD_BYTES_MAX = 64 * 1024
    FIELDS_MAX = 100
    TARGET_BYTES_MAX = 8 * 1024
    PIPELINED_MAX = 32
    CONNECTIONS_PER_PEER_MAX = 1024
    HANDSHAKE_TIMEOUT_S = 10.0
    HEAD_TIMEOUT_S = 10.0
    BODY_STRETCH_S = 10.0
    BODY_BYTES_PER_S_MIN = 100
    KEEP_ALIVE_S = 75.0

    _open: weakref.WeakKeyDictionary[Any, collections.Counter[str]] = weakref.WeakKeyDictionary()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = httptools.HttpRequestParser(self)  # strict: uvicorn's lets data after `Connection: close` pass
        self.timeout_keep_alive = self.KEEP_ALIVE_S  # type: ignore[assignment]
        self.status = 400
        self._address = ""
        self._made = False
        self._phase = "idle"
        self._head_bytes = self._fields = self._unparsed = self._stretch_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_is_head = False
        self._accepted: list[tuple[RequestResponseCycle, Any]] | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called for the accepted connection, and once more for the TLS inside it."""
        ssl_object = transport.get_extra_info("ssl_object")
        if not self._address and not self._admit(transport):
            transport.abort()
            return
        self.transport = transport
        self.connections.add(self)
        host: Any = self.app_state.get(HOST)
        context = None if host is None else host.listener()
        if context is None or ssl_object is not None:
            self._opened(transport, ssl_object)
        elif host.strict:
            self._secure(context)
        else:
            self._phase = "sniff"
            self._arm(self.HANDSHAKE_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._release()
        if self._made:
            super().connection_lost(exc)

    def _opened(self, transport: asyncio.Transport, ssl_object: Any) -> None:
        self.app_state = {**self.app_state, PEER: peer_of(ssl_object)}
        self._made = True
        super().connection_made(transport)
        self._arm(self.HEAD_TIMEOUT_S, self._head_late)

    def _secure(self, context: ssl.SSLContext, early: bytes = b"") -> None:
        """Put TLS between the connection and this protocol, at once: `loop.start_tls` is a step later, and on uvloop
        what is read in between would be plaintext believed to have come through TLS.
        """
        done = self.loop.create_future()
        done.add_done_callback(self._secured)
        timeout_s: Any = self.HANDSHAKE_TIMEOUT_S
        tls = sslproto.SSLProtocol(self.loop, self, context, done, server_side=True, ssl_handshake_timeout=timeout_s)
        self.transport.set_protocol(tls)
        tls.connection_made(self.transport)
        if early:
            tls.get_buffer(len(early))[: len(early)] = early
            tls.buffer_updated(len(early))

    def _secured(self, done: asyncio.Future[Any]) -> None:
        """The handshake is over. Failed, gone or too late: there is nobody to answer."""
        failed = done.cancelled() or done.exception() is not None
        if failed or not self._made:
            self._release()

    def _sniffed(self, data: bytes) -> None:
        self._stop_timer()
        self._phase = "idle"
        if data.startswith(_TLS_HANDSHAKE):
            self._secure(self.app_state[HOST].listener(), data)
        else:
            self._opened(self.transport, None)
            self.data_received(data)

    def _admit(self, transport: asyncio.Transport) -> bool:
        """Count the connection against its address; False: there are too many of it."""
        name = transport.get_extra_info("peername")
        address = str(name[0]) if isinstance(name, tuple) else "unix"
        counts = self._open.setdefault(self.server_state, collections.Counter())
        if counts[address] >= self.CONNECTIONS_PER_PEER_MAX:
            return False
        counts[address] += 1
        self._address = address
        if isinstance(name, tuple):
            # asyncio turns Nagle off only where the listener was made with IPPROTO_TCP; gunicorn's are not.
            tcp.tune(transport.get_extra_info("socket").fileno())
        return True

    def _release(self) -> None:
        self.connections.discard(self)
        if self._address:
            counts = self._open[self.server_state]
            counts[self._address] -= 1
            if not counts[self._address]:
                del counts[self._address]
            self._address = ""

    # The bytes

    def data_received(self, data: bytes) -> None:
        if self._phase == "sniff":
            self._sniffed(data)
            return
        self._unset_keepalive_if_required()
        in_head = self._phase == "head"
        self._accepted = []
        try:
            self.parser.feed_data(data)
            if in_head and self._phase == "head":
                self._unparsed += len(data)
            self._check_unfinished(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                return
            # Upgrade is ignored (RFC 9110 §7.8); what follows is not for this parser, so it is the last request.
            self.cycle.keep_alive = False
        except (httptools.HttpParserError, _RefusedError):
            self._refuse(self.status)
            return
        finally:
            accepted, self._accepted = self._accepted, None
        for cycle, app in accepted:
            super()._start_asgi_task(cycle, app)
        self._watch(len(data))

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over; it stays counted until the websocket is gone."""
        self._stop_timer()
        super().handle_websocket_upgrade()
        websocket: Any = self.transport.get_protocol()
        lost = websocket.connection_lost

        def connection_lost(exc: Exception | None) -> None:
            self._release()
            lost(exc)

        websocket.connection_lost = connection_lost

    def _check_unfinished(self, data: bytes) -> None:
        """A head whose end has not come: too long already, or with a coding that will be refused anyway?"""
        if self._phase == "head":
            if self._unparsed > self.HEAD_BYTES_MAX:
                self._fail(431)
            if _BAD_CODING.search(data):
                self._fail(501)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._accepted is None:
            super()._start_asgi_task(cycle, app)
        else:
            self._accepted.append((cycle, app))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase, self.status = "head", 400
        self._head_bytes = self._fields = self._unparsed = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.TARGET_BYTES_MAX:
            self._fail(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += 1
        self._head_bytes += len(name) + len(value) + 4
        if self._fields > self.FIELDS_MAX or self._head_bytes + len(self.url) > self.HEAD_BYTES_MAX:
            self._fail(431)
        if self._phase != "head":
            return  # a trailer: it counts, but it is not one of the fields that were checked
        if name.lower() == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked":
            self._fail(501)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            self._fail(505)
        if (
            len({value for name, value in self.headers if name == b"host"}) > 1
            or len(self.pipeline) >= self.PIPELINED_MAX
        ):
            self._fail(400)
        self._phase = "body"
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._phase = "idle"
        super().on_message_complete()

    def _fail(self, status: int) -> None:
        self.status = status
        raise _RefusedError

    def _refuse(self, status: int) -> None:
        """Answer in the application's place, unless a response is on its way, and close."""
        self._stop_timer()
        self.pipeline.clear()
        cycle = self.cycle
        if not self.transport.is_closing() and (cycle is None or cycle.response_complete or not cycle.response_started):
            text = REASONS[status].encode("ascii")
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(text) + text)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    # The clock: one timer, for the head or for the current stretch of the body

    def _watch(self, received: int) -> None:
        if self._phase == "body":
            self._stretch_bytes += received
            if self._timer is None or self._timer_is_head:
                self._stretch_bytes = received
                self._arm(self.BODY_STRETCH_S, self._body_stretch)
        elif self._phase == "head" or self.cycle is None or self.cycle.response_complete:
            if self._timer is None or not self._timer_is_head:
                self._arm(self.HEAD_TIMEOUT_S, self._head_late)
        else:
            self._stop_timer()

    def _arm(self, seconds: float, late: Any) -> None:
        self._stop_timer()
        self._timer_is_head = late == self._head_late
        self._timer = self.loop.call_later(seconds, late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_late(self) -> None:
        self._timer = None
        if self._phase == "head":
            self._refuse(408)
        else:
            self.transport.close()

    def _body_stretch(self) -> None:
        """Was the last stretch of a body too slow? Not the client's fault while the application does not read."""
        self._timer = None
        if self._phase != "body" or self.transport.is_closing():
            return
        waiting_for_us = self.flow.read_paused or self.cycle.waiting_for_100_continue
        if not waiting_for_us and self._stretch_bytes < self.BODY_BYTES_PER_S_MIN * self.BODY_STRETCH_S:
            self._refuse(408)
            return
        self._stretch_bytes = 0
        self._arm(self.BODY_STRETCH_S, self._body_stretch)
