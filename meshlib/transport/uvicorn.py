"""The connection: uvicorn's httptools protocol with the peer's identity, TLS of the mesh's own, and limits.

Rules:
  * the verified peer of the connection (a SpiffeId, or None) is in `scope["state"]["meshlib.peer"]`; nothing else is;
  * a connection to a mesh with mTLS starts TLS here, with the mesh's own context, so that any uvicorn command line will
    do;
  * a request begins only when every byte received so far was well-formed: what is refused never ran. A refusal is
    written only where the answer to the refused request belongs, never into another response;
  * each request runs in a copy of the connection's own context: what one sets, the next does not see (cpython#140947);
  * everything has a bound: head, fields, request line, body, chunk extensions, trailers, what is read after an early
    answer, pipelined requests, connections of one address, and the time for the handshake, the head, and each stretch
    of the body and of the response.
Sources: RFC 9112, FAULTS F20–F22 (uvicorn#157), llhttp strict, Envoy `request_headers_timeout`.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import re
import ssl
import weakref
from asyncio import sslproto
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from ..config.endpoints import is_loopback
from ..identity.tls import peer_of
from . import tcp
from .headers import HOST, PEER

REASONS = {
    400: "the request is not well-formed HTTP/1.1",
    408: "the request did not arrive in time",
    413: "the request body is too large",
    414: "the request target is too long",
    431: "the request header is too large",
    501: "the transfer coding is not supported",
    505: "only HTTP/1.0 and HTTP/1.1 are spoken here",
}
_BAD_CODING = re.compile(rb"\ntransfer-encoding[ \t]*:[ \t]*(?!chunked[ \t]*\r?\n)[^\r\n]*\r?\n", re.IGNORECASE)
_BODY_FIELDS = {b"content-length", b"transfer-encoding"}


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
    BODY_FRAMING_MAX = 64 * 1024
    """Chunk sizes, chunk extensions and trailers since the last byte of the body."""
    DRAIN_BYTES_MAX = 64 * 1024
    """What is read of a body whose request is answered already; for at most `BODY_STRETCH_S`."""
    WRITE_STRETCH_S = 10.0
    WRITE_BYTES_PER_S_MIN = 100
    TLS_CLOSE_S = 1.0
    """How long the peer is given to answer the end of TLS."""
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
        self._framing_bytes = self._body_bytes = self._drained = self._unsent = 0
        self._body_max: int | None = None
        self._running: RequestResponseCycle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_is_head = False
        self._accepted: list[tuple[RequestResponseCycle, Any]] | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called for the accepted connection, and once more for the TLS inside it."""
        ssl_object = transport.get_extra_info("ssl_object")
        if not self._address:
            self._socket, self._context = transport, contextvars.copy_context()
            if not self._admit(transport):
                transport.abort()
                return
        self.transport = transport
        self.connections.add(self)
        host: Any = self.app_state.get(HOST)
        context = None if host is None else host.listener()
        if context is None or ssl_object is not None:
            self._opened(transport, ssl_object)
        elif host.loopback_only and not _within_machine(transport):
            transport.abort()  # whatever server this is, and wherever it was told to listen
        else:
            self._secure(context)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_write_timer()
        self._release()
        if self._made:
            super().connection_lost(exc)
            self._disconnect(self._running)

    def _opened(self, transport: asyncio.Transport, ssl_object: Any) -> None:
        self.app_state = {**self.app_state, PEER: peer_of(ssl_object)}
        self._made = True
        super().connection_made(transport)
        self._arm(self.HEAD_TIMEOUT_S, self._head_late)

    def _secure(self, context: ssl.SSLContext) -> None:
        """Put TLS between the connection and this protocol, at once: `loop.start_tls` is a step later, and on uvloop
        what is read in between would be plaintext believed to have come through TLS.
        """
        done = self.loop.create_future()
        done.add_done_callback(self._secured)
        times: Any = {"ssl_handshake_timeout": self.HANDSHAKE_TIMEOUT_S, "ssl_shutdown_timeout": self.TLS_CLOSE_S}
        tls = sslproto.SSLProtocol(self.loop, self, context, done, server_side=True, **times)
        self.transport.set_protocol(tls)
        tls.connection_made(self.transport)

    def _secured(self, done: asyncio.Future[Any]) -> None:
        """The handshake is over. Failed, gone or too late: there is nobody to answer."""
        failed = done.cancelled() or done.exception() is not None
        if failed or not self._made:
            self._release()

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
        self._unset_keepalive_if_required()
        in_head = self._phase == "head"
        self._accepted = []
        if self._phase == "body":
            self._framing_bytes += len(data)
        try:
            self.parser.feed_data(data)
            if in_head and self._phase == "head":
                self._unparsed += len(data)
            self._check_unfinished(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                if self._accepted or self._is_answering():
                    self._refuse(400)
                    return
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
            self._run(cycle, app)
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
        """A head whose end has not come: too long already, or with a coding that will be refused anyway? A body of
        which nothing comes but framing?
        """
        if self._phase == "body" and self._framing_bytes > self.BODY_FRAMING_MAX:
            self._fail(431)
        if self._phase == "head":
            if self._unparsed > self.HEAD_BYTES_MAX:
                self._fail(431)
            if _BAD_CODING.search(data):
                self._fail(501)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._accepted is None:
            self._run(cycle, app)
        else:
            self._accepted.append((cycle, app))

    def _run(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        task = self.loop.create_task(cycle.run_asgi(app), context=self._context.copy())
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _is_answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

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
        names = [name for name, _ in self.headers]
        hosts, is_old = names.count(b"host"), self.parser.get_http_version() == "1.0"
        if hosts > 1 or (hosts == 0 and not is_old) or (is_old and b"transfer-encoding" in names):
            self._fail(400)
        if len(self.pipeline) >= self.PIPELINED_MAX or b"%00" in self.url:
            self._fail(400)
        if self.parser.should_upgrade() and self._should_upgrade() and not _BODY_FIELDS.isdisjoint(names):
            self._fail(400)
        self._phase = "body"
        self._framing_bytes = self._body_bytes = self._drained = 0
        host: Any = self.app_state.get(HOST)
        self._body_max = None if host is None else host.max_request_body
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The piece that passes the limit is still handed on: the adapter answers it with its document."""
        if self._body_max is not None and self._body_bytes > self._body_max:
            self._fail(413)
        self._framing_bytes = 0
        self._body_bytes += len(body)
        if self.cycle is not None and self.cycle.response_complete:
            self._drained += len(body)
            if self._drained > self.DRAIN_BYTES_MAX:
                self._fail(413)
        super().on_body(body)

    def on_response_complete(self) -> None:
        if self._phase == "body" and self._running is self.cycle:
            self._arm(self.BODY_STRETCH_S, self.transport.close)
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._phase = "idle"
        super().on_message_complete()

    def _fail(self, status: int) -> None:
        self.status = status
        raise _RefusedError

    def _refuse(self, status: int) -> None:
        """Answer in the application's place, if it is this request's turn and no byte of its response is out; close."""
        self._stop_timer()
        self.pipeline.clear()
        if not self.transport.is_closing() and self._may_answer():
            text = REASONS[status].encode("ascii")
            head = b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(text) + text)
        self._disconnect(self.cycle)
        self._disconnect(self._running)
        self.transport.close()

    def _may_answer(self) -> bool:
        """Is the request that is refused the next to be answered, and still unanswered?"""
        running = self._running
        if running is None:
            return True
        if self._phase == "body" and running is self.cycle:
            return not running.response_started
        return running.response_complete

    def _disconnect(self, cycle: RequestResponseCycle | None) -> None:
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    # The clock: one timer for the head or the current stretch of the body, one for a response that is not read

    def _watch(self, received: int) -> None:
        if self._phase == "body" and self._running is self.cycle is not None and self.cycle.response_complete:
            return  # the drain has its own time
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

    def pause_writing(self) -> None:
        """The peer reads more slowly than the application writes: from now on it must keep a pace."""
        super().pause_writing()
        self._unsent = self._to_send()
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self.WRITE_STRETCH_S, self._write_stretch)

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _write_stretch(self) -> None:
        sent = self._unsent - self._to_send()
        if sent < self.WRITE_BYTES_PER_S_MIN * self.WRITE_STRETCH_S:
            self._socket.abort()
            return
        self._unsent -= sent
        self._write_timer = self.loop.call_later(self.WRITE_STRETCH_S, self._write_stretch)

    def _to_send(self) -> int:
        below = self._socket.get_write_buffer_size() if self._socket is not self.transport else 0
        return self.transport.get_write_buffer_size() + below

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _within_machine(transport: asyncio.BaseTransport) -> bool:
    """Did the connection come to a loopback address, or a unix socket?"""
    name = transport.get_extra_info("sockname")
    return not isinstance(name, tuple) or is_loopback(str(name[0]))
