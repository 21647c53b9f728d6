"""Reply → httpx.Response: a streamed reply ends on every exit, errors are httpx's too, decoding is bounded."""

from __future__ import annotations

import asyncio
import gc
import gzip
import pickle
from typing import Any

import httpx
import pytest

from meshlib.call import Call, Reply
from meshlib.errors import DeadlineExceeded, MeshError, TransportError
from meshlib.transport import httpx_response
from meshlib.transport.httpx_response import (
    ENCODED,
    LOCATION,
    SET_COOKIE,
    TRAIL,
    AsyncStreamed,
    BlockingStreamed,
    header_list,
    response_of,
)

REQUEST = httpx.Request("GET", "http://inventory/a")
MIB = 1 << 20


class Stream:
    """A reply stream of given pieces; an exception among them is raised."""

    def __init__(self, *pieces: bytes | MeshError) -> None:
        self.pieces, self.closed = list(pieces), 0

    async def read(self) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, MeshError):
            raise piece
        return piece

    async def aclose(self) -> None:
        self.closed += 1

    def drop(self) -> None:
        self.closed += 1


class Streamed:
    """A streamed response over `pieces`, and how its call ended."""

    def __init__(self, *pieces: bytes | MeshError, kind: type[Any], fields: Any = (), limit: int = 100 * MIB) -> None:
        self.stream, self.ends = Stream(*pieces), []  # type: Stream, list[MeshError | None]
        reply = Reply(200, list(fields), stream=self.stream, reason=b"Fine")
        reply.at_end(self.ends.append)
        self.call = Call("inventory.default", "GET", b"/a")
        self.response = response_of(self.call, reply, REQUEST, limit, kind)
        self.response.request = REQUEST


def test_read_to_the_end() -> None:
    """The call ends once, without an error, when the body does."""

    async def read() -> None:
        it = Streamed(b"ab", b"cd", kind=AsyncStreamed)
        assert it.ends == []
        assert await it.response.aread() == b"abcd"
        assert it.ends == [None]

    asyncio.run(read())
    it = Streamed(b"ab", b"cd", kind=BlockingStreamed)
    assert it.response.read() == b"abcd"
    assert it.ends == [None]


def test_extensions() -> None:
    """The reason as sent, the version, and the trail of the call."""
    it = Streamed(kind=BlockingStreamed)
    assert (it.response.reason_phrase, it.response.http_version) == ("Fine", "HTTP/1.1")
    assert it.response.extensions[TRAIL] is it.call.trail
    it.response.read()


@pytest.mark.parametrize(
    ("error", "is_httpx"),
    [
        (TransportError("cut", phase="read", cause="closed"), httpx.RemoteProtocolError),
        (TransportError("reset", phase="read", cause="reset"), httpx.ReadError),
        (DeadlineExceeded("late", phase="read", sent=True), httpx.ReadTimeout),
    ],
)
def test_errors_in_the_body(error: MeshError, is_httpx: type[Exception]) -> None:
    """They are both, name the request, carry the trail, and end the call."""

    async def read() -> None:
        it = Streamed(b"ab", error, kind=AsyncStreamed)
        with pytest.raises(is_httpx) as caught:
            await it.response.aread()
        assert isinstance(caught.value, type(error))
        assert caught.value.request is REQUEST  # type: ignore[attr-defined]
        assert caught.value.trail is it.call.trail
        assert it.ends == [error]

    asyncio.run(read())
    error.trail = None
    it = Streamed(b"ab", error, kind=BlockingStreamed)
    with pytest.raises(is_httpx) as caught:
        it.response.read()
    assert caught.value.trail is it.call.trail  # type: ignore[attr-defined]
    assert it.ends == [error]


def test_closed_early() -> None:
    """Leaving early closes the stream once and ends the call once."""

    async def leave() -> None:
        it = Streamed(b"ab", b"cd", kind=AsyncStreamed)
        async for _ in it.response.aiter_raw():
            break
        await it.response.aclose()
        await it.response.aclose()
        assert (it.stream.closed, it.ends) == (1, [None])

    asyncio.run(leave())
    it = Streamed(b"ab", b"cd", kind=BlockingStreamed)
    it.response.close()
    it.response.close()
    assert (it.stream.closed, it.ends) == (1, [None])


def test_never_looked_at() -> None:
    """An unread response that is collected frees its connection and ends its call."""

    async def forget() -> None:
        it = Streamed(b"ab", kind=AsyncStreamed)
        del it.response
        gc.collect()
        for _ in range(3):
            await asyncio.sleep(0)
        assert (it.stream.closed, it.ends) == (1, [None])
        assert not httpx_response._GIVING_UP

    asyncio.run(forget())
    it = Streamed(b"ab", kind=BlockingStreamed)
    del it.response
    gc.collect()
    assert (it.stream.closed, it.ends) == (1, [None])


def test_collected_after_its_loop() -> None:
    """Without a loop there is nothing to close any more, but the call ends."""

    async def make() -> Streamed:
        return Streamed(b"ab", kind=AsyncStreamed)

    it = asyncio.run(make())
    del it.response
    gc.collect()
    assert (it.stream.closed, it.ends) == (0, [None])


def test_a_streamed_bomb() -> None:
    """100 MB of zeros in one piece: DecodingError, ours too, and the call is over when it is closed."""
    it = Streamed(
        gzip.compress(bytes(100 * MIB)), kind=BlockingStreamed, fields=[(b"content-encoding", b"gzip")], limit=MIB
    )
    with pytest.raises(httpx.DecodingError) as caught:
        it.response.read()
    assert isinstance(caught.value, TransportError)
    assert caught.value.cause == "decode"
    assert caught.value.request is REQUEST
    assert caught.value.trail is it.call.trail
    it.response.close()
    assert it.ends == [None]


def test_a_plain_body_read_whole_is_limited() -> None:
    """Streamed and without an encoding: `read` keeps it all, so it stops at the limit; piece by piece there is none."""
    it = Streamed(b"abc", b"def", kind=BlockingStreamed, limit=6)
    assert it.response.read() == b"abcdef"
    it = Streamed(b"abc", b"def", b"", kind=BlockingStreamed, limit=5)
    with pytest.raises(httpx.RemoteProtocolError, match="larger than 5 bytes") as caught:
        it.response.read()
    assert isinstance(caught.value, TransportError)
    assert (caught.value.cause, caught.value.trail) == ("too_large", it.call.trail)
    it.response.close()
    assert it.ends == [None]

    async def read() -> None:
        it = Streamed(b"abc", b"def", kind=AsyncStreamed, limit=5)
        with pytest.raises(httpx.RemoteProtocolError):
            await it.response.aread()
        await it.response.aclose()

    asyncio.run(read())
    for pieces in (httpx.Response.iter_raw, httpx.Response.iter_bytes):
        it = Streamed(b"abc", b"def", kind=BlockingStreamed, limit=5)
        assert b"".join(pieces(it.response)) == b"abcdef"


def test_a_whole_reply() -> None:
    """Without a stream the body is there, still decoded under the limit, and the response pickles."""
    reply = Reply(200, [(b"content-encoding", b"gzip")], gzip.compress(b"packed"))
    response = response_of(Call("a", "GET", b"/"), reply, REQUEST, 6, BlockingStreamed)
    response.request = REQUEST
    assert response.read() == b"packed"
    assert pickle.loads(pickle.dumps(response)).text == "packed"
    response = response_of(Call("a", "GET", b"/"), reply, REQUEST, 5, BlockingStreamed)
    with pytest.raises(httpx.DecodingError):
        response.read()


def test_header_list() -> None:
    """httpx's triples in wire order, and which fields ask for more work."""
    listed, special = header_list([(b"X-A", b"1"), (b"Set-Cookie", b"a=1"), (b"LOCATION", b"/")])
    assert listed == [(b"X-A", b"x-a", b"1"), (b"Set-Cookie", b"set-cookie", b"a=1"), (b"LOCATION", b"location", b"/")]
    assert special == SET_COOKIE | LOCATION
    assert header_list([(b"content-encoding", b"br")])[1] == ENCODED


def test_remembered_names_are_bounded() -> None:
    """A peer that invents header names does not grow this process."""
    header_list([(b"x-%d" % n, b"") for n in range(httpx_response._LOWER_MAX + 10)])
    assert len(httpx_response._LOWER) == httpx_response._LOWER_MAX
    assert header_list([(b"X-New", b"1")])[0] == [(b"X-New", b"x-new", b"1")]
