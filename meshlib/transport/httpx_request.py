"""httpx.Request → Call: what goes on the wire, and what may not.

Rules. Header lines keep httpx's order and case. A request that h11 would refuse is refused here too, as
LocalProtocolError before a byte is sent: names that are no token, CR, LF or NUL in a value, none or two Hosts, and
framing that two readers could take for two messages (RFC 9112 §6.3, §11.2). The user's own trace headers become
`call.trace`, because the mesh writes them; the user's own `x-meshlib-*` are left out: what the mesh says of a call
(its attempt, its deadline, its source) is not for the application to say.
Extensions of a request that are read here: `timeout` (seconds per phase, as httpx has it), `target`, and
`meshlib.streaming`, `meshlib.timeout_s` (asked for this call), `meshlib.client_timeout_s` (the client's default).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx

from ..call import Call, Fields, PhaseTimeouts, TraceContext
from ..call_policy import POLICY, CallPolicy
from ..errors import TransportError
from ..served import SERVED
from ..telemetry.traceparent import parse_traceparent, parse_tracestate
from .http1 import is_token

STREAMING = "meshlib.streaming"
TIMEOUT_S = "meshlib.timeout_s"
CLIENT_TIMEOUT_S = "meshlib.client_timeout_s"

is_value = re.compile(rb"(?:[^\x00\s]+(?:[ \t]+[^\x00\s]+)*)?").fullmatch
_is_target = re.compile(rb"[!-~\x80-\xff]+").fullmatch
_is_length = re.compile(rb"[0-9]{1,18}").fullmatch
_TRACE = (b"traceparent", b"tracestate")
OURS = b"x-meshlib-"
"""How the names of headers begin that only the mesh may send."""


def call_of(request: httpx.Request, service: str, *, asynchronous: bool) -> Call:
    """The Call that `request` asks of `service`. Raises TransportError, cause `local`, for what may not be sent."""
    fields = request.headers.raw
    _check_fields(fields)
    target = request.extensions.get("target", request.url.raw_path)
    if not is_token(request.method.encode("utf-8")) or not _is_target(target):
        raise _unsendable(f"{request.method!r} {target!r} is no request line")
    asked = request.extensions
    return make_call(
        service,
        request.method,
        target,
        render(fields),
        _body(request, fields, asynchronous),
        streaming=asked.get(STREAMING, True),
        timeout_s=asked.get(TIMEOUT_S),
        client_timeout_s=asked.get(CLIENT_TIMEOUT_S),
        phases=None if TIMEOUT_S in asked or CLIENT_TIMEOUT_S in asked else phases_of(asked.get("timeout", {})),
        trace=_trace(fields),
    )


def make_call(
    service: str,
    method: str,
    target: bytes,
    lines: bytes,
    body: bytes | StreamedBody,
    *,
    streaming: bool,
    timeout_s: float | None,
    client_timeout_s: float | None,
    phases: PhaseTimeouts | None,
    trace: TraceContext | None = None,
) -> Call:
    """A Call under what is in force here: its timeout is the call's own, else `mesh.policy`'s, else the client's."""
    policy: CallPolicy | None = POLICY.get()
    if policy is None:
        return Call(
            service, method, target, lines, body, streaming=streaming, phases=phases, served=SERVED.get(), trace=trace,
            timeout_s=client_timeout_s if timeout_s is None else timeout_s,
        )  # fmt: skip
    if timeout_s is None:
        timeout_s = client_timeout_s if policy.timeout_s is None else policy.timeout_s
    return Call(
        service, method, target, lines + policy.header_lines, body, streaming=streaming, phases=phases,
        served=SERVED.get(), trace=trace, timeout_s=timeout_s, max_retries=policy.max_retries,
        idempotent=policy.idempotent, schedule=policy.schedule, hash_key=policy.hash_key,
    )  # fmt: skip


def render(fields: Fields) -> bytes:
    """The header lines, without those that the mesh writes itself."""
    return b"".join([b"%b: %b\r\n" % field for field in fields if not _is_ours(field[0].lower())])


def phases_of(timeout: dict[str, float | None]) -> PhaseTimeouts | None:
    """The timeout extension of httpx; None where it limits nothing."""
    phases = PhaseTimeouts(*(timeout.get(name) for name in ("connect", "read", "write", "pool")))
    return None if phases.connect is phases.read is phases.write is phases.pool is None else phases


class StreamedBody:
    """A RequestBody over httpx's stream, sent once.

    A body that is not `length` bytes long is a TransportError: what follows it would be read as the next request.
    """

    __slots__ = ("_asynchronous", "_length", "_stream", "framed")

    def __init__(self, stream: Any, length: int | None, asynchronous: bool) -> None:
        self._stream, self._length, self._asynchronous, self.framed = stream, length, asynchronous, length is None

    def pieces(self) -> Any:
        """The pieces, by the kind of iteration of the client that sends them."""
        return self._awaited() if self._asynchronous else self._plain()

    async def _awaited(self) -> AsyncIterator[bytes]:
        sent = 0
        async for piece in self._stream:
            sent += len(piece)
            self._fits(sent, ended=False)
            yield piece
        self._fits(sent, ended=True)

    def _plain(self) -> Iterator[bytes]:
        sent = 0
        for piece in self._stream:
            sent += len(piece)
            self._fits(sent, ended=False)
            yield piece
        self._fits(sent, ended=True)

    def _fits(self, sent: int, *, ended: bool) -> None:
        if self._length is not None and (sent > self._length or (ended and sent < self._length)):
            raise _unsendable(f"the body has {sent} bytes, its Content-Length is {self._length}", sent=True)


class LazyRequest(httpx.Request):
    """A request that was sent without being built; it becomes a plain httpx.Request when somebody looks at it."""

    def __init__(self, build: Callable[[], httpx.Request], content: Any) -> None:
        self._build, self._content = build, content

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._become(), name)

    def __repr__(self) -> str:
        return repr(self._become())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._become().__reduce_ex__(protocol)

    def _become(self) -> httpx.Request:
        build = self.__dict__.get("_build")
        if build is not None:  # it may be built twice by two threads, but never be seen half built
            own = {name: value for name, value in self.__dict__.items() if name != "_build"}
            self.__dict__ = {**build().__dict__, **own}
            self.__class__ = httpx.Request  # type: ignore[assignment]
        return self


def _is_ours(name: bytes) -> bool:
    return name in _TRACE or name.startswith(OURS)


def _check_fields(fields: Fields) -> None:
    for name, value in fields:
        if not is_token(name):
            raise _unsendable(f"{name!r} is no header name")
        if not is_value(value):
            raise _unsendable(f"the value of header {name.decode('ascii')!r} has characters that a header may not have")
    if len(_values(fields, b"host")) != 1:
        raise _unsendable("a request has exactly one Host header")


def _body(request: httpx.Request, fields: Fields, asynchronous: bool) -> bytes | StreamedBody:
    """The body, when its framing says the same to every reader."""
    lengths, encodings = _values(fields, b"content-length"), _values(fields, b"transfer-encoding")
    if encodings and (lengths or encodings != [b"chunked"]):
        raise _unsendable("Transfer-Encoding must be chunked, once, and without a Content-Length")
    if len(lengths) > 1 or not all(map(_is_length, lengths)):
        raise _unsendable(f"Content-Length must be one number, not {lengths!r}")
    length = int(lengths[0]) if lengths else None
    content = None if encodings else _content(request)
    if content is None:
        if length is None and not encodings:
            raise _unsendable("a streamed body needs a Content-Length or Transfer-Encoding: chunked")
        return StreamedBody(request.stream, length, asynchronous)
    if len(content) != (length or 0):
        raise _unsendable(f"the body has {len(content)} bytes, its Content-Length is {length}")
    return content


def _content(request: httpx.Request) -> bytes | None:
    """The body where it is in memory: read, or carried on by a redirect."""
    try:
        return request.content
    except httpx.RequestNotRead:
        return b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else None


def _trace(fields: Fields) -> TraceContext | None:
    parents = _values(fields, b"traceparent")
    if not parents:
        return None
    trace = parse_traceparent([value.decode("latin-1") for value in parents])
    if trace is not None:
        trace.state = parse_tracestate([value.decode("latin-1") for value in _values(fields, b"tracestate")])
    return trace


def _values(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name]


def _unsendable(message: str, *, sent: bool = False) -> TransportError:
    return TransportError(message, phase="write", cause="local", sent=sent)
