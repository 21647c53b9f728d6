"""Reply → httpx.Response: the generic kind with a stream, and the kind that is read already and made when looked at.

Rules. Bodies are decoded under the destination's limit, which httpx does not have. A streamed reply ends on every exit:
read to its end, an error, `aclose`, or never looked at and collected. Errors are httpx's too (`httpx_errors`).
Both kinds are `httpx.Response` and pickle; `extensions` has `http_version`, `reason_phrase` and `meshlib.trail`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx

from ..call import Call, Fields, Reply, Trail
from ..errors import MeshError, TransportError
from ..runtime.blocking import drive
from .content_encoding import ContentDecoder, codings
from .httpx_errors import lift

TRAIL = "meshlib.trail"

HeaderList = list[tuple[bytes, bytes, bytes]]
"""What httpx.Headers keeps: name as sent, lower-case name, value."""
SET_COOKIE, ENCODED, LOCATION = 1, 2, 4
_SPECIAL = {b"set-cookie": SET_COOKIE, b"content-encoding": ENCODED, b"location": LOCATION}
_LOWER: dict[bytes, bytes] = {}
_LOWER_MAX = 1024
"""Names remembered in lower case; a peer that invents more only costs time."""


def header_list(fields: Fields) -> tuple[HeaderList, int]:
    """The internal list of httpx.Headers, and which of SET_COOKIE, ENCODED and LOCATION are in it."""
    listed, special = [], 0
    for name, value in fields:
        lower = _LOWER.get(name)
        if lower is None:
            lower = name.lower()
            if len(_LOWER) < _LOWER_MAX:
                _LOWER[name] = lower
        special |= _SPECIAL.get(lower, 0)
        listed.append((name, lower, value))
    return listed, special


class MeshResponse(httpx.Response):
    """A Response whose body is decoded under a limit, `max_decoded_bytes`; above it, and for a bomb, DecodingError.

    A streamed body without an encoding has the same limit where it is read whole (`read`, `aread`: what a client of
    your own over `mesh.transport()` does); above it, RemoteProtocolError. Piece by piece it has none.
    """

    max_decoded_bytes: int
    comes_in_pieces: bool

    def read(self) -> bytes:
        """As httpx, under the limit."""
        self._get_content_decoder().whole = self.comes_in_pieces
        return super().read()

    async def aread(self) -> bytes:
        """As httpx, under the limit."""
        self._get_content_decoder().whole = self.comes_in_pieces
        return await super().aread()

    def _get_content_decoder(self) -> Any:
        if not hasattr(self, "_decoder"):
            self._decoder: Any = _Decoder(self.headers, self.max_decoded_bytes, self.extensions.get(TRAIL))
        return self._decoder


def response_of(
    call: Call, reply: Reply, request: httpx.Request, max_decoded_bytes: int, streamed: type[Any]
) -> MeshResponse:
    """The Response for a reply; `streamed` is the class of its stream where the body is still to come."""
    response = MeshResponse(
        reply.status,
        headers=reply.headers,
        stream=httpx.ByteStream(reply.body) if reply.stream is None else streamed(call, reply, request),
        extensions=_extensions(call, reply),
    )
    response.max_decoded_bytes, response.comes_in_pieces = max_decoded_bytes, reply.stream is not None
    return response


class _Streamed:
    """A reply's body on its way to the user. The call ends with it, once."""

    def __init__(self, call: Call, reply: Reply, request: httpx.Request) -> None:
        assert reply.stream is not None
        self._call, self._reply, self._stream, self._request, self._open = call, reply, reply.stream, request, True

    def _ended(self, error: MeshError | None = None) -> None:
        self._open = False
        self._reply.end(error)


class AsyncStreamed(_Streamed, httpx.AsyncByteStream):
    """On asyncio. Collected unread, its loop gives up the body."""

    def __init__(self, call: Call, reply: Reply, request: httpx.Request) -> None:
        super().__init__(call, reply, request)
        self._loop = asyncio.get_running_loop()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while piece := await self._stream.read():
                yield piece
        except MeshError as e:
            self._ended(e)
            raise lift(e, self._request, self._call.trail) from e.__cause__
        self._ended()

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            await self._reply.discard()

    def __del__(self) -> None:
        if not self._open:
            return
        if self._loop.is_closed():
            self._ended()
        else:
            self._loop.call_soon_threadsafe(_give_up, self._loop, self._reply)


class BlockingStreamed(_Streamed, httpx.SyncByteStream):
    """On threads. Collected unread, the body is given up at once."""

    def __iter__(self) -> Iterator[bytes]:
        try:
            while piece := drive(self._stream.read()):
                yield piece
        except MeshError as e:
            self._ended(e)
            raise lift(e, self._request, self._call.trail) from e.__cause__
        self._ended()

    def close(self) -> None:
        if self._open:
            self._open = False
            drive(self._reply.discard())

    def __del__(self) -> None:  # inside any lock, so nothing here may take one that is not re-entrant
        if self._open:
            self._ended()
            drop = getattr(self._stream, "drop", None)
            if drop is not None:
                drop()


class LazyResponse(httpx.Response):
    """A response that has been read; what httpx computes for every one is made when somebody looks."""

    def __init__(
        self,
        call: Call,
        reply: Reply,
        headers: HeaderList,
        content: bytes,
        request: httpx.Request,
        took_s: float,
        default_encoding: str | Callable[[bytes], str],
    ) -> None:
        self.status_code, self._content, self._request = reply.status, content, request
        self.headers = made = httpx.Headers.__new__(httpx.Headers)
        made._list, made._encoding = headers, None
        self.next_request, self.history, self.extensions = None, [], _extensions(call, reply)
        self.is_closed = self.is_stream_consumed = True
        self.default_encoding, self.stream = default_encoding, _READ
        self._num_bytes_downloaded, self._took_s = len(reply.body), took_s

    @property
    def elapsed(self) -> timedelta:
        """From the call to the end of the body."""
        return timedelta(seconds=self._took_s)

    @elapsed.setter
    def elapsed(self, elapsed: timedelta) -> None:
        self._took_s = elapsed.total_seconds()


def decoded(headers: HeaderList, body: bytes, max_bytes: int) -> bytes:
    """The whole body, decoded. Raises TransportError, cause `decode`."""
    applied = codings(value for _, lower, value in headers if lower == b"content-encoding")
    decoder = ContentDecoder(applied, max_bytes)
    return decoder.decode(body) + decoder.flush()


class _Decoder:
    """A decoder as httpx wants one: its errors are httpx's too, and httpx gives them their request.

    `whole`: every piece is kept by the reader, so their sum is limited.
    """

    def __init__(self, headers: httpx.Headers, max_bytes: int, trail: Trail | None) -> None:
        values = [value for name, value in headers.raw if name.lower() == b"content-encoding"]
        self._applied, self._max, self._trail = codings(values), max_bytes, trail
        self._decoder: ContentDecoder | None = None
        self.whole, self._size = False, 0

    def decode(self, data: bytes) -> bytes:
        try:
            if self._decoder is None:
                self._decoder = ContentDecoder(self._applied, self._max)
            piece = self._decoder.decode(data)
            self._size += len(piece)
            if self.whole and self._size > self._max:
                message = f"the body, read whole, is larger than {self._max} bytes"
                raise TransportError(message, phase="read", cause="too_large")
            return piece
        except MeshError as e:
            raise lift(e, None, self._trail) from e.__cause__

    def flush(self) -> bytes:
        try:
            return b"" if self._decoder is None else self._decoder.flush()
        except MeshError as e:
            raise lift(e, None, self._trail) from e.__cause__


def _extensions(call: Call, reply: Reply) -> dict[str, Any]:
    return {"http_version": reply.http_version, "reason_phrase": reply.reason, TRAIL: call.trail}


def _give_up(loop: asyncio.AbstractEventLoop, reply: Reply) -> None:
    task = loop.create_task(reply.discard())
    _GIVING_UP.add(task)
    task.add_done_callback(_GIVING_UP.discard)


_GIVING_UP: set[asyncio.Task[None]] = set()
"""A loop keeps only weak references to its tasks. Bounded by the open streamed replies."""
_READ = httpx.ByteStream(b"")
"""The stream of every response that has been read; httpx's `aclose` wants to see one."""
