"""HTTP/1.1 without I/O: a request head out, one response in.

Decides what a response is and whether its connection may serve again. Rules of this file:

1.  httptools (llhttp, strict) is the parser; nothing reaches it that was not counted before: it has no limits.
2.  What it accepts and RFC 9112 or a mesh must not is refused here: versions but 1.0 and 1.1, statuses outside
    100..599, an upgrade nobody asked for, any transfer coding but exactly `chunked`, an interim response with a body.
3.  A body of known length, or one that ends with the connection, goes around the parser.
4.  `keep` is true only after a complete response, followed by nothing, that says the connection persists.
5.  One reader per response: after HEAD, or a body that went around it, a parser is out of step.
"""

from __future__ import annotations

import re

import httptools

from ..call import Call, Fields
from ..errors import Cause, TransportError
from .limits import HttpLimits

is_token = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110 §5.6.2
_UNSAFE_TARGET = re.compile(rb"[\x00-\x20\x7f]").search
_METHODS = {m: m.encode() for m in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")}
_VERSIONS = {"1.1": b"HTTP/1.1", "1.0": b"HTTP/1.0"}
_H = 0x48
_ENDLESS = 1 << 62


def render_head(call: Call, extra_lines: bytes) -> bytes:
    """The request line, `call.lines`, `extra_lines` (both end each line with CRLF) and the empty line.

    Raises TransportError(cause="local") for a method that is no token or a target that would break the line.
    """
    method = _METHODS.get(call.method) or _method(call.method)
    if _UNSAFE_TARGET(call.target) or not call.target:
        raise _local(f"the request target {call.target!r} is empty or has a space or control character")
    return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method, call.target, call.lines, extra_lines)


def expects_continue(call: Call) -> bool:
    """Did the caller ask to wait for `100 Continue` before the body is sent (RFC 9110 §10.1.1)?"""
    return any(value.lower() == "100-continue" for value in call.header("expect"))


def _method(method: str) -> bytes:
    rendered = method.encode("latin-1", "replace")
    if not is_token(rendered):
        raise _local(f"the method {method!r} is not a token")
    return rendered


def _local(message: str) -> TransportError:
    return TransportError(message, phase="write", cause="local", sent=False)


class ResponseReader:
    """Bytes in by `feed` and `eof`, one response out. Look at `head_done`, `done`, `keep`; take the body by `take`.

    `buffered`: the whole body will be collected, so `limits.body_bytes` holds. Both inputs raise TransportError
    (phase read); after that the reader and its connection are of no more use.
    """

    __slots__ = (
        "_chunked", "_error", "_fed", "_left", "_length", "_limits", "_max_body", "_parser", "_parts", "_persists",
        "_seen", "_size", "done", "head_done", "headers", "http_version", "interim", "keep", "method", "on_body",
        "reason", "status", "trailers",
    )  # fmt: skip

    def __init__(self, method: str, limits: HttpLimits, buffered: bool = True) -> None:
        self.method, self.status, self.reason, self.http_version = method, 0, b"", b"HTTP/1.1"
        self.headers: Fields = []
        self.trailers: Fields | None = None
        self.head_done = self.done = self.keep = self._chunked = self._persists = False
        self.interim = self._fed = self._size = self._seen = 0
        self._limits, self._max_body = limits, limits.body_bytes if buffered else _ENDLESS
        self._length, self._left = -1, -1  # _left ≥ 0: bytes still to come around the parser
        self._error: TransportError | None = None
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # a C function: no Python frame per piece
        self._parser = httptools.HttpResponseParser(self)

    @property
    def started(self) -> bool:
        """Has a byte of a response been seen?"""
        return self._fed > 0

    @property
    def waiting(self) -> int:
        """Bytes of body that were received and not taken."""
        return sum(map(len, self._parts))

    def take(self) -> bytes:
        """The body received since the last take."""
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._seen = 0
        return body

    def forget(self) -> None:
        """Let go of the body: nobody will take it. The error's traceback keeps this reader, and may be kept long."""
        self._parts.clear()

    def feed(self, data: bytes | memoryview) -> None:
        """Take `data` in; it may be reused as soon as this returns."""
        if self.done:
            self.keep = False  # nobody asked for more
        elif self._left >= 0:
            self._pass_by(data)
        elif self.head_done:
            self._parse(data)
        else:
            self._head(data)

    def eof(self, clean: bool = True) -> None:
        """The peer has ended the stream. `clean`: under TLS, close_notify came; without it an end proves nothing."""
        if self.done:
            self.keep = False
        elif self.head_done and not self._chunked and self._length < 0 and clean:
            self.done, self.keep = True, False
        elif not self.started:
            raise _failure("closed", "the connection was closed before the response")
        else:
            raise _failure("closed", f"the connection was closed inside the {'body' if self.head_done else 'head'}")

    def _head(self, data: bytes | memoryview) -> None:
        if not self._fed and len(data) and data[0] != _H:  # llhttp also speaks ICE and RTSP
            raise _failure("protocol", "the response does not begin with HTTP/")
        room = self._limits.head_bytes - self._fed
        if len(data) <= room:
            self._fed += len(data)
            self._parse(data)
            return
        if room:
            self._fed += room
            self._parse(data[:room])
        if not self.head_done and self._fed >= self._limits.head_bytes:
            raise _failure("too_large", f"the response head is above {self._limits.head_bytes} bytes")
        self.feed(data[room:])

    def _parse(self, data: bytes | memoryview) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done:
                raise self._error or _failure("protocol", f"not an HTTP/1 response: {error}") from error
            self.keep = False  # rubbish, or a second response, after a complete one
        if self.done:
            if self.method == "HEAD" and self._parts:
                self._parts.clear()
                self.keep = False
        elif self.head_done:
            if self._chunked:
                self._count(len(data))
            else:
                self._go_around()
        if self.trailers and len(self.trailers) > self._limits.fields:
            raise _failure("too_large", f"more than {self._limits.fields} trailer fields")

    def _go_around(self) -> None:
        """The head is complete and the body is not: from here the framing is plain counting."""
        self._persists = self._parser.should_keep_alive()
        got = self._size = self.waiting
        self._left = self._length - got if self._length >= 0 else _ENDLESS
        self._check_size()

    def _pass_by(self, data: bytes | memoryview) -> None:
        size = len(data)
        if size > self._left:
            data, size, self._persists = data[: self._left], self._left, False
        self._parts.append(bytes(data))
        self._left -= size
        self._size += size
        if not self._left:
            self.done, self.keep = True, self._persists
        elif self._length < 0:
            self._check_size()

    def _count(self, fed: int) -> None:
        """After a piece of a chunked body: bound its size, and what comes between two pieces of it."""
        new = len(self._parts) - self._seen
        if new > 1:  # many tiny chunks cost more as objects than as bytes
            self._parts[self._seen :] = [b"".join(self._parts[self._seen :])]
        if new:
            self._size += len(self._parts[-1])
            self._fed, self._seen = 1, len(self._parts)
            self._check_size()
        else:
            self._fed += fed
            if self._fed > self._limits.head_bytes:
                raise _failure("too_large", f"more than {self._limits.head_bytes} bytes of chunk framing or trailers")

    def _check_size(self) -> None:
        if self._size > self._max_body:
            raise _failure("too_large", f"the response body is above {self._max_body} bytes")

    def _refuse(self, cause: Cause, message: str) -> TransportError:
        self._error = _failure(cause, message)
        return self._error

    # What httptools calls. An exception stops the parser; `_parse` sees it as HttpParserCallbackError.

    def on_message_begin(self) -> None:
        if self.done:
            raise self._refuse("protocol", "a second response that nobody asked for")

    def on_status(self, text: bytes) -> None:
        self.reason = self.reason + text if self.reason else text

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.trailers is not None:
            self.trailers.append((name, value))
            return
        self.headers.append((name, value))
        if len(name) == 17 and name.lower() == b"transfer-encoding":
            if self._chunked or value.strip(b" \t").lower() != b"chunked":
                raise self._refuse("protocol", f"the transfer coding {value[:40]!r} is not exactly 'chunked'")
            self._chunked = True
        elif len(name) == 14 and name.lower() == b"content-length":
            self._length = int(value)

    def on_headers_complete(self) -> None:
        parser = self._parser
        self.status = status = parser.get_status_code()
        version = parser.get_http_version()
        if version not in _VERSIONS or not 100 <= status < 600 or status == 101:
            raise self._refuse("protocol", f"HTTP/{version} with status {status} is not a response to this request")
        if len(self.headers) > self._limits.fields:
            raise self._refuse("too_large", f"more than {self._limits.fields} header fields")
        if status < 200:
            if self._chunked or self._length > 0:
                raise self._refuse("protocol", f"an interim response ({status}) with a body")
            return
        self.http_version = _VERSIONS[version]
        if self._chunked and version == "1.0":
            raise self._refuse("protocol", "a transfer coding in HTTP/1.0")
        self.head_done, self.trailers, self._fed = True, [], 1
        if self.method == "HEAD":
            self.done, self.keep = True, parser.should_keep_alive()
        elif self._length > self._max_body and status not in (204, 304):
            raise self._refuse("too_large", f"the response body of {self._length} bytes is above {self._max_body}")

    def on_message_complete(self) -> None:
        if self.done:
            return
        if self.head_done:
            self.done, self.keep = True, self._parser.should_keep_alive()
            return
        self.interim += 1
        if self.interim > self._limits.interim:
            raise self._refuse("protocol", f"more than {self._limits.interim} interim responses")
        self.headers, self.reason, self._fed, self._length, self._chunked = [], b"", 1, -1, False


def _failure(cause: Cause, message: str) -> TransportError:
    return TransportError(message, phase="read", cause=cause)
