"""httpx.Request → Call: lines, framing, trace, timeouts; and the request that is made when looked at."""

from __future__ import annotations

import pickle
from typing import Any

import httpx
import pytest

from meshlib.call import Call
from meshlib.call_policy import call_policy
from meshlib.errors import TransportError
from meshlib.served import SERVED, Served
from meshlib.transport.httpx_request import CLIENT_TIMEOUT_S, STREAMING, TIMEOUT_S, LazyRequest, StreamedBody, call_of

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def made(method: str = "GET", **parts: Any) -> Call:
    return call_of(httpx.Request(method, "http://inventory/a?b=1", **parts), "inventory.default", asynchronous=False)


def test_lines_keep_order_and_case() -> None:
    """What goes on the wire is what httpx has, hop-by-hop fields included."""
    call = made(headers=[("X-B", "2"), ("x-a", "1"), ("Connection", "close"), ("X-B", "3")])
    assert call.lines == b"Host: inventory\r\nX-B: 2\r\nx-a: 1\r\nConnection: close\r\nX-B: 3\r\n"
    assert (call.service, call.method, call.target, call.body) == ("inventory.default", "GET", b"/a?b=1", b"")


def test_what_the_mesh_says_of_a_call_is_not_for_the_user_to_say() -> None:
    """The user's own x-meshlib-* headers do not go out, in any spelling."""
    assert made(headers={"X-Meshlib-Attempt": "9", "x-meshlib-source": "admin", "x-mesh": "1"}).lines == (
        b"Host: inventory\r\nx-mesh: 1\r\n"
    )


def test_streaming_is_the_default_of_a_transport() -> None:
    """Only our own client says that a whole body is wanted; then the deadline covers it."""
    assert made().streaming is True
    assert made(extensions={STREAMING: False}).streaming is False


def test_timeouts() -> None:
    """Phases from httpx's extension; none where it limits nothing, or where a number asked for a total."""
    phases = made(extensions={"timeout": {"connect": 1, "read": 2, "write": None, "pool": 4}}).phases
    assert phases is not None
    assert (phases.connect, phases.read, phases.write, phases.pool) == (1, 2, None, 4)
    assert made(extensions={"timeout": dict.fromkeys(("connect", "read", "write", "pool"))}).phases is None
    for name in (TIMEOUT_S, CLIENT_TIMEOUT_S):
        call = made(extensions={"timeout": {"read": 3}, name: 3.0})
        assert (call.timeout_s, call.phases) == (3.0, None)


def test_call_over_context_over_client() -> None:
    """`timeout=` of the call wins over `mesh.policy`, which wins over the client's default."""
    with call_policy(timeout=2, max_retries=1, idempotent=True, headers={"x-p": "1"}):
        call = made(extensions={CLIENT_TIMEOUT_S: 3.0})
        assert (call.timeout_s, call.max_retries, call.idempotent) == (2.0, 1, True)
        assert call.lines.endswith(b"x-p: 1\r\n")
        assert made(extensions={CLIENT_TIMEOUT_S: 3.0, TIMEOUT_S: 1.0}).timeout_s == 1.0
    assert made(extensions={CLIENT_TIMEOUT_S: 3.0}).timeout_s == 3.0


def test_the_served_call_goes_along() -> None:
    """Deadline and trace of the call being served are inherited without a header being touched."""
    served = Served(lambda: 0.0)
    token = SERVED.set(served)
    try:
        assert made().served is served
    finally:
        SERVED.reset(token)


def test_the_users_trace_becomes_the_calls() -> None:
    """The mesh writes the trace headers; the user's are read, and do not go out beside them."""
    call = made(headers={"traceparent": PARENT, "tracestate": "a=1"})
    assert call.trace is not None
    assert (f"{call.trace.trace_id:032x}", call.trace.sampled, call.trace.state) == (PARENT[3:35], True, "a=1")
    assert call.lines == b"Host: inventory\r\n"
    for headers in ({"traceparent": "nonsense"}, {"tracestate": "a=1"}):
        call = made(headers=headers)
        assert (call.trace, call.lines) == (None, b"Host: inventory\r\n")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"headers": {"x": "1\r\ny: 2"}}, "value of header 'x'"),
        ({"headers": {"x": "1\ny"}}, "value of header 'x'"),
        ({"headers": {"x": "1\0"}}, "value of header 'x'"),
        ({"headers": {"x y": "1"}}, "no header name"),
        ({"headers": {"": "1"}}, "no header name"),
        ({"headers": [("host", "a"), ("host", "b")]}, "one Host"),
        ({"content": b"xy", "headers": {"content-length": "3"}}, "has 2 bytes"),
        ({"content": b"xy", "headers": {"content-length": "+2"}}, "one number"),
        ({"content": b"xy", "headers": [("content-length", "2"), ("content-length", "2")]}, "one number"),
        ({"content": b"xy", "headers": {"transfer-encoding": "chunked"}}, "without a Content-Length"),
        ({"content": iter([b"x"]), "headers": {"transfer-encoding": "gzip, chunked"}}, "must be chunked"),
        ({"stream": httpx.ByteStream(b"xy"), "headers": {"host": "a"}}, "has 2 bytes, its Content-Length is None"),
        ({"extensions": {"target": b"/a b"}}, "no request line"),
        ({"extensions": {"target": b"/a\r\n"}}, "no request line"),
        ({"method": "GE T"}, "no request line"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_not_be_sent(parts: dict[str, Any], says: str) -> None:
    """Refused with cause `local`, before a byte is sent."""
    with pytest.raises(TransportError, match=says) as caught:
        made(**{"method": "POST", **parts})
    assert (caught.value.cause, caught.value.sent, caught.value.retryable) == ("local", False, False)


def test_a_streamed_body_without_framing_is_refused() -> None:
    """Neither a length nor chunks: the peer could not tell its end."""
    source = httpx.Request("POST", "http://a", content=iter([b"x"])).stream
    with pytest.raises(TransportError, match="needs a Content-Length"):
        made("POST", stream=source, headers={"host": "a"})


def test_bodies() -> None:
    """Bytes when in memory (a redirect's too); else pieces, framed unless the length is known."""
    assert made("POST", content=b"xy").body == b"xy"
    carried = {"stream": httpx.ByteStream(b"xy"), "headers": {"host": "a", "content-length": "2"}}
    assert made("POST", **carried).body == b"xy"
    chunked = made("POST", content=iter([b"x", b"", b"y"])).body
    assert isinstance(chunked, StreamedBody)
    assert chunked.framed
    assert list(chunked.pieces()) == [b"x", b"", b"y"]
    known = made("POST", content=iter([b"x", b"y"]), headers={"content-length": "2"}).body
    assert isinstance(known, StreamedBody)
    assert not known.framed


@pytest.mark.parametrize(("length", "got"), [("1", 2), ("3", 2)])
def test_a_streamed_body_has_its_length(length: str, got: int) -> None:
    """A piece too much is refused before it is sent; one too few at the end."""
    body = made("POST", content=iter([b"x", b"y"]), headers={"content-length": length}).body
    assert isinstance(body, StreamedBody)
    with pytest.raises(TransportError, match=f"has {got} bytes, its Content-Length is {length}"):
        list(body.pieces())


def lazy() -> tuple[LazyRequest, list[int]]:
    built: list[int] = []

    def build() -> httpx.Request:
        built.append(1)
        return httpx.Request("POST", "http://inventory/a", content=b"xy", headers={"x": "1"})

    return LazyRequest(build, b"xy"), built


def test_a_lazy_request_is_built_once_when_looked_at() -> None:
    """Content needs no building; anything else makes it a plain httpx.Request."""
    request, built = lazy()
    assert isinstance(request, httpx.Request)
    assert (request.content, request.read(), built) == (b"xy", b"xy", [])
    assert (request.method, request.headers["x"], request.url.path, built) == ("POST", "1", "/a", [1])
    assert type(request) is httpx.Request
    with pytest.raises(AttributeError):
        _ = request.nonsense  # type: ignore[attr-defined]


def test_a_lazy_request_keeps_what_was_set_first() -> None:
    """A hook's assignment is not undone by building."""
    request, _ = lazy()
    request.headers = httpx.Headers({"x": "mine"})
    assert (request.method, request.headers["x"]) == ("POST", "mine")


def test_a_lazy_request_looks_and_pickles_like_any() -> None:
    """`repr` and pickle see httpx.Request."""
    assert repr(lazy()[0]) == "<Request('POST', 'http://inventory/a')>"
    copy = pickle.loads(pickle.dumps(lazy()[0]))
    assert type(copy) is httpx.Request
    assert (copy.content, copy.headers["x"]) == (b"xy", "1")
