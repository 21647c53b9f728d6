"""The WSGI adapter: the same call, the same stack, on a thread; alone, under uvicorn, and with Flask."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from flask import Flask, request
from serving_host import FakeHost, Running, get, parts

from meshlib.errors import Rejected
from meshlib.served import SERVED, current
from meshlib.transport.asgi import MeshAsgi
from meshlib.transport.headers import PEER
from meshlib.transport.wsgi import BODY_IN_MEMORY_MAX, WSGI_THREADS, MeshWsgi, as_asgi, looks_like_wsgi


def environ(**more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET", "SCRIPT_NAME": "/app", "PATH_INFO": "/a b", "QUERY_STRING": "q=1", "HTTP_HOST": "a",
        "wsgi.input": io.BytesIO(b"abcdef"), **more,
    }  # fmt: skip


def asked(app: Any, env: dict[str, Any]) -> tuple[str, dict[str, str], bytes]:
    """What a server would see: status, fields, body; the body closed as PEP 3333 demands."""
    started: list[Any] = []
    pieces = app(env, lambda status, headers, *exc: started.append((status, headers)))
    try:
        body = b"".join(pieces)
    finally:
        if hasattr(pieces, "close"):
            pieces.close()
    return started[-1][0], dict(started[-1][1]), body


def hello(env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    served = current()
    assert served is not None
    start_response("200 OK", [("x-attempt", str(served.attempt))])
    return [b"hello ", str(env[PEER]).encode()]


def test_a_mirrors_copy_is_served_as_one() -> None:
    """`current().mirror` says that nobody waits for the answer."""
    seen = []

    def application(_environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(current().mirror)  # type: ignore[union-attr]
        start_response("200 OK", [])
        return []

    mesh = MeshWsgi(application, FakeHost())
    asked(mesh, environ())
    asked(mesh, environ(HTTP_X_MESHLIB_MIRROR="1"))
    assert seen == [False, True]


def test_a_request_is_a_call_down_the_stack() -> None:
    """The mesh starts at first use; the stack sees service, method, target and fields; nothing is left set."""
    host = FakeHost()
    mesh = MeshWsgi(hello, host)
    extra = {"HTTP_X_MESHLIB_ATTEMPT": "2", "HTTP_X_ENVOY_A": "1", "CONTENT_TYPE": "text/plain"}
    assert asked(mesh, environ(**extra)) == ("200 OK", {"x-attempt": "2"}, b"hello None")
    asked(mesh, environ())
    call = host.calls[0]
    assert (host.events, call.target, call.header("content-type")) == (["start"], b"/app/a%20b?q=1", ["text/plain"])
    assert call.header("x-envoy-a") == []
    assert (SERVED.get(), host.in_flight.count) == (None, 0)


def test_a_streamed_body_is_in_flight_until_it_is_closed() -> None:
    """A generator runs in the request's context, also after the first piece, and is closed with the response."""
    host = FakeHost()
    closed: list[bool] = []

    def app(env: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        try:
            start_response("200 OK", [])
            for _ in range(2):
                assert current() is not None
                yield b"piece"
        finally:
            closed.append(True)

    pieces: Any = MeshWsgi(app, host)(environ(), lambda *_: None)
    assert (next(pieces), host.in_flight.count) == (b"piece", 1)
    pieces.close()
    assert (closed, host.in_flight.count) == ([True], 0)


def test_strict_fails_closed() -> None:
    """No verified peer in strict: 403, whatever the environ claims."""
    env = environ(SSL_CLIENT_CERT="x", **{PEER: "spiffe://shop.example/ns/default/sa/cart"})
    status, headers, body = asked(MeshWsgi(hello, FakeHost("strict")), env)
    assert (status, headers["x-meshlib-refused"]) == ("403 Forbidden", "identity")
    assert json.loads(body)["error"] == "identity"


def test_errors_before_the_response_are_problem_documents() -> None:
    """A refusal of the stack, and a MeshError of the application, are answered; after the start they are raised."""
    host = FakeHost()
    late = environ(HTTP_X_MESHLIB_DEADLINE_MS="0")
    assert asked(MeshWsgi(hello, host), late)[0] == "504 Gateway Timeout"

    def busy(env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if env["PATH_INFO"] == "/begun":
            start_response("200 OK", [])
        raise Rejected("shed", "busy", retry_after_s=1.0)

    status, headers, _ = asked(MeshWsgi(busy, host), environ())
    assert (status, headers["retry-after"]) == ("503 Service Unavailable", "1")
    with pytest.raises(Rejected):
        asked(MeshWsgi(busy, host), environ(PATH_INFO="/begun"))
    assert host.in_flight.count == 0


@pytest.mark.parametrize("how", ["read", "read_some", "readline", "readlines"])
def test_bodies_are_limited(how: str) -> None:
    """A declared body over the limit is refused unread; any other way to read it stops at the limit."""

    def app(env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        stream = env["wsgi.input"]
        body = stream.read(3) + stream.read(100) if how == "read_some" else getattr(stream, how.split("_")[0])()
        start_response("200 OK", [])
        return body if isinstance(body, list) else [body]

    assert asked(MeshWsgi(app, FakeHost(max_request_body=6)), environ())[2] == b"abcdef"
    status, headers, _ = asked(MeshWsgi(app, FakeHost(max_request_body=5)), environ())
    assert (status[:3], "x-meshlib-refused" in headers) == ("413", False)
    declared = environ(CONTENT_LENGTH="6")
    assert asked(MeshWsgi(hello, FakeHost(max_request_body=5)), declared)[0].startswith("413")


def test_a_spent_call_tells_its_caller_not_to_retry() -> None:
    """An error after the budget is spent says so."""

    def app(env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        served = current()
        assert served is not None
        served.spent = True
        start_response("503 Service Unavailable", [])
        return [b""]

    assert asked(MeshWsgi(app, FakeHost()), environ())[1] == {"x-meshlib-no-retry": "1"}


def test_a_relayed_refusal_is_not_the_meshs() -> None:
    """An application that passes on an upstream's fields does not speak for the mesh."""

    def relay(env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("503 Service Unavailable", [("X-Meshlib-Refused", "shed"), ("X-Kept", "1")])
        return [b""]

    assert asked(MeshWsgi(relay, FakeHost()), environ())[1] == {"X-Kept": "1"}


def test_what_is_wsgi() -> None:
    """Two positional arguments and not async: WSGI. Anything else is taken for ASGI."""
    flask = Flask("x")

    class Asgi:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    async def function(scope: Any, receive: Any, send: Any) -> None: ...

    assert looks_like_wsgi(hello)
    assert looks_like_wsgi(flask)
    assert looks_like_wsgi(MeshWsgi(hello, FakeHost()))
    assert not any(map(looks_like_wsgi, (Asgi(), Asgi, function, MeshAsgi(function, FakeHost()), 3)))


def shop() -> Flask:
    app = Flask("shop")

    @app.get("/who")
    def who() -> Any:
        served = current()
        assert served is not None
        return {"peer": str(request.environ[PEER]), "attempt": served.attempt}

    @app.post("/orders")
    def orders() -> Any:
        return {"bytes": len(request.get_data())}

    return app


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with Running(shop(), FakeHost("strict", max_request_body=100)) as server:
        yield server


def test_flask_knows_its_caller(served: Running) -> None:
    """A Flask view on the mesh's uvicorn sees the verified peer, in the environ and in the context."""
    status, _, body = parts(served.talk(get("/who", "X-Meshlib-Attempt: 2"), "cart"))
    assert (status, json.loads(body)) == (200, {"peer": "spiffe://shop.example/ns/default/sa/cart", "attempt": 2})


def test_flask_bodies_are_limited(served: Running) -> None:
    """413 over the limit, declared or chunked; at the limit the body arrives whole."""
    assert json.loads(parts(served.talk(get("/orders", method="POST", body=b"a" * 100), "cart"))[2]) == {"bytes": 100}
    assert parts(served.talk(get("/orders", method="POST", body=b"a" * 101), "cart"))[0] == 413
    chunked = get("/orders", "Transfer-Encoding: chunked", method="POST") + b"65\r\n" + b"a" * 101 + b"\r\n0\r\n\r\n"
    assert parts(served.talk(chunked, "cart"))[0] == 413


def bridged(app: Any, *messages: Any, **options: Any) -> list[Any]:
    """What `as_asgi` sends for a POST whose body comes in these messages."""
    queue, sent = list(messages), []
    scope = {
        "type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1",
    }  # fmt: skip

    async def receive() -> Any:
        return queue.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    adapted: Any = as_asgi(app, **options)
    asyncio.run(adapted(scope, receive, send))
    return sent


def size(env: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [str(len(env["wsgi.input"].read())).encode()]


def piece(body: bytes, *, more: bool = True) -> Any:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_cut_short_never_reaches_the_view() -> None:
    """A client that goes away in the middle of a body must not look like a shorter body; nothing runs, or is sent."""
    seen: list[Any] = []
    assert bridged(lambda *arguments: seen.append(arguments), piece(b"half"), {"type": "http.disconnect"}) == []
    assert seen == []


def test_a_body_is_whole_before_a_thread_is_taken() -> None:
    """Small or spooled to a file, the view finds all of it; without a mesh a body over the bound is 413."""
    for pieces in (1, 3):
        whole = [piece(b"a" * (BODY_IN_MEMORY_MAX // 2)) for _ in range(pieces)]
        sent = bridged(size, *whole, piece(b"b", more=False))
        assert sent[1]["body"] == str(pieces * BODY_IN_MEMORY_MAX // 2 + 1).encode()
    assert bridged(size, piece(b"ab"), piece(b"c", more=False), max_body=3)[1]["body"] == b"3"
    assert bridged(size, piece(b"ab"), piece(b"cd"), max_body=3)[0]["status"] == 413


def test_slow_uploads_hold_no_thread() -> None:
    """More unfinished uploads than there are threads: another request is answered all the same."""
    with Running(size, FakeHost(max_request_body=100)) as server, contextlib.ExitStack() as held:
        for _ in range(WSGI_THREADS):
            upload = held.enter_context(server.connect())
            upload.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\na")
        assert parts(server.talk(get()))[2] in (b"0", b"1\r\n0\r\n0\r\n\r\n")
