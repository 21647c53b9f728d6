"""The admin listener: `/livez`, `/readyz`, `/metrics` for probes and scrapers that have no certificate.

A daemon thread on the standard library's server, so that it answers while an event loop is stalled: that is the moment
when it is asked. Bounds: 8 requests at once, 5 s for each from its first byte to its last, 8 KiB of request, GET and
HEAD only, no bodies read.
Source: Kubernetes `livez`/`readyz`, Prometheus text exposition 0.0.4.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from ..errors import ConfigError

THREADS_MAX = 8
TIMEOUT_S = 5.0
REQUEST_BYTES_MAX = 8 * 1024
ACCEPT_PAUSE_S = 0.5
"""When there is no file descriptor left: the connection stays in the queue, so that asking again at once would spin."""
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AdminServer:
    """Listens from the moment it is made. `listen`: `host:port`; port 0 takes a free one, told by `address`.

    `live()`: is the process worth keeping? `ready()`: (may it be sent work?, why not). `metrics()`: the exposition.
    The three are called on a thread of the server's own. OSError when the address is taken.
    """

    def __init__(
        self,
        listen: str,
        *,
        live: Callable[[], bool],
        ready: Callable[[], tuple[bool, str]],
        metrics: Callable[[], str],
    ) -> None:
        pages = {
            "/livez": lambda: _probe(live(), ""),
            "/readyz": lambda: _probe(*ready()),
            "/metrics": lambda: (200, metrics()),
        }
        self._server = _Server(_split(listen), pages)
        self._pid = os.getpid()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="meshlib-admin", daemon=True
        )
        self._thread.start()
        _OPEN.add(self._server)

    @property
    def address(self) -> str:
        """`host:port` it really listens on."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Stop listening. Idempotent; within a fraction of a second."""
        if self._thread.is_alive() and os.getpid() == self._pid:
            self._server.shutdown()
            self._thread.join(TIMEOUT_S)
        self._server.forget()


class _Server(HTTPServer):
    """One thread per request, at most eight; the ninth connection is closed at once."""

    def __init__(self, address: tuple[str, int], pages: dict[str, Callable[[], tuple[int, str]]]) -> None:
        self.pages, self._free = pages, threading.BoundedSemaphore(THREADS_MAX)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer looks up the host's name here, which can block for seconds where DNS is down.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._serve, args=(request, client_address), name="meshlib-admin-request", daemon=True
        ).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away, or sent no HTTP, is not this process's trouble."""

    def forget(self) -> None:
        self.server_close()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
            self._free.release()


class _Handler(BaseHTTPRequestHandler):
    server_version = "meshlib"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = _Bounded(self.connection)  # type: ignore[assignment]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
        """Probes come every second; they are not news."""

    def _answer(self, *, body: bool) -> None:
        server: Any = self.server
        page = server.pages.get(self.path.partition("?")[0])
        status, text = (404, "pages: " + " ".join(server.pages) + "\n") if page is None else _tried(page)
        content = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", METRICS_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.rfile.arm()  # type: ignore[attr-defined]
        self.end_headers()
        if body:
            self.rfile.arm()  # type: ignore[attr-defined]
            self.wfile.write(content)


class _Bounded:
    """The request as it is read: at most 8 KiB of it, beyond that it just ends; TimeoutError 5 s after it was made."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._received, self._left = connection, b"", REQUEST_BYTES_MAX
        self._end = time.monotonic() + TIMEOUT_S

    def arm(self) -> None:
        """Give the next operation on the socket what is left of the request's time."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the request took longer than {TIMEOUT_S:g} s")
        self._connection.settimeout(left)

    def readline(self, size: int = -1) -> bytes:
        while b"\n" not in self._received and self._left > 0:
            self.arm()
            piece = self._connection.recv(self._left)
            if not piece:
                break
            self._received += piece
            self._left -= len(piece)
        end = self._received.find(b"\n") + 1 or len(self._received)
        end = end if size < 0 else min(end, size)
        line, self._received = self._received[:end], self._received[end:]
        return line

    def close(self) -> None:
        """The connection is closed by the server."""


_OPEN: weakref.WeakSet[_Server] = weakref.WeakSet()


def _after_fork() -> None:
    """A child of fork has no such thread: it must not hold the parent's port."""
    for server in _OPEN:
        server.forget()


os.register_at_fork(after_in_child=_after_fork)


def _probe(well: bool, why: str) -> tuple[int, str]:
    return (200, "ok\n") if well else (503, f"{why or 'no'}\n")


def _tried(page: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """A page that fails is an answer, not a connection that breaks off: the probe must see that something is wrong."""
    try:
        return page()
    except Exception as error:
        return 500, f"{type(error).__name__}: {error}\n"


def _split(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    with contextlib.suppress(ValueError):
        if colon and 0 <= int(port) <= 65535:
            return host.strip("[]") or "127.0.0.1", int(port)
    raise ConfigError(f"admin.listen must be 'host:port', got {listen!r}")
