"""A plain HTTP/1.1 server on threads, for tests that look at what reaches a backend."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO


class HttpBackend:
    """`answer(handler)` answers each request, of any method, as a method of http.server's handler would."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_any(self) -> None:
                answer(self)

            do_GET = do_POST = do_PUT = do_HEAD = do_OPTIONS = do_any

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def body_of(handler: BaseHTTPRequestHandler) -> bytes:
    """The whole body of a request."""
    return read_body(handler.rfile, handler.headers)


def read_body(stream: BinaryIO, fields: Mapping[str, str]) -> bytes:
    """A whole body, chunked or not. `fields`: by name in lower case, or in any case of letters."""
    if fields.get("transfer-encoding") != "chunked":
        return stream.read(int(fields.get("content-length", 0)))
    body = b""
    while size := int(stream.readline(), 16):
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body


def respond(handler: BaseHTTPRequestHandler, status: int, body: bytes, **fields: str) -> None:
    """A whole response; `_` of a field's name is a hyphen."""
    handler.send_response(status)
    for name, value in {"content-length": str(len(body)), **fields}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


@contextmanager
def backends(*names: str) -> Iterator[dict[str, HttpBackend]]:
    """HTTP servers that answer with their name."""

    def of(name: str) -> HttpBackend:
        def answer(handler: Any) -> None:
            body_of(handler)
            respond(handler, 200, name.encode(), connection="close")

        return HttpBackend(answer)

    made = {name: of(name) for name in names}
    try:
        yield made
    finally:
        for backend in made.values():
            backend.close()
