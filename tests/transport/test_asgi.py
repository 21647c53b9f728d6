"""The ASGI adapter: what the application sees, what the caller gets, who starts first."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from serving_host import FakeHost, Running, get, parts

from meshlib.errors import DeadlineExceeded, NoHealthyEndpoint, PermissionDenied, Rejected
from meshlib.served import SERVED, current
from meshlib.transport.asgi import MeshAsgi, Message, Receive, Scope, Send
from meshlib.transport.headers import HOST, PEER
from meshlib.transport.lifespan import NO_PEERS, PEERS


def http(path: str = "/", headers: Any = (), peer: Any = None, state: bool = True) -> Scope:
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"q=1",
        "headers": list(headers),
    }  # fmt: skip
    if state:
        scope["state"] = {PEER: peer}
    return scope


def asked(app: Any, scope: Scope, *bodies: bytes) -> list[Message]:
    """Everything that is sent in answer to one request."""
    messages = [
        {"type": "http.request", "body": body, "more_body": n < len(bodies)} for n, body in enumerate(bodies, 1)
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def refusal(sent: list[Message]) -> tuple[int, dict[bytes, bytes], Any]:
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])


def test_a_request_is_a_call_down_the_stack() -> None:
    """The stack sees the service, method, target, fields and peer; the application what it would see anyway."""
    host = FakeHost()
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["headers"], current()))
        await echo(scope, receive, send)

    headers = [(b"accept", b"*/*"), (b"x-meshlib-deadline-ms", b"5000"), (b"x-envoy-a", b"1"),
               (b"traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"), (b"tracestate", b"a=b")]  # fmt: skip
    sent = asked(MeshAsgi(app, host), http("/items/1", headers), b"a", b"b")
    assert [message.get("body") for message in sent] == [None, b"ab"]
    call = host.calls[0]
    assert (call.service, call.method, call.target) == ("orders.default", "POST", b"/items/1?q=1")
    assert call.header("accept") == ["*/*"]
    assert (call.trace.trace_id, call.trace.state) == (int("1" * 32, 16), "a=b")
    fields, served = seen[0]
    assert b"x-envoy-a" not in dict(fields)
    assert 4 < served.remaining_s <= 5
    assert call.deadline == served.deadline
    assert SERVED.get() is None
    assert host.in_flight.count == 0


@pytest.mark.parametrize("state", [True, False])
def test_strict_fails_closed(state: bool) -> None:
    """In strict a request whose connection has no verified peer, or that no one says anything about, is 403."""
    sent = asked(MeshAsgi(echo, FakeHost("strict")), http("/", state=state), b"")
    status, headers, problem = refusal(sent)
    assert (status, headers[b"x-meshlib-refused"], problem["error"]) == (403, b"identity", "identity")


@pytest.mark.parametrize(
    ("error", "status", "kind", "more"),
    [
        (Rejected("deadline", "late"), 504, b"rejected", {}),
        (Rejected("shed", "busy", retry_after_s=0.2), 503, b"rejected", {b"retry-after": b"1"}),
        (Rejected("rate_limited", "often", retry_after_s=1.2), 429, b"rejected", {b"retry-after": b"2"}),
        (PermissionDenied("no", rule="r1"), 403, b"denied", {}),
        (DeadlineExceeded("slow", phase="read", sent=False), 504, b"deadline", {}),
        (NoHealthyEndpoint("stock", {}), 503, b"no_endpoint", {}),
        (DeadlineExceeded("slow", phase="read", sent=True), 504, None, {}),
    ],
)
def test_errors_of_the_stack_are_problem_documents(error: Any, status: int, kind: bytes, more: Any) -> None:
    """An error before the response began is answered; only what was never begun is marked as refused."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    got, headers, problem = refusal(asked(MeshAsgi(app, FakeHost()), http(), b""))
    assert (got, headers.get(b"x-meshlib-refused")) == (status, kind)
    assert problem.pop("reason", "") == getattr(error, "reason", "")
    assert problem == {"error": error.kind, "message": str(error), "rule": getattr(error, "rule", "")}
    assert headers[b"content-type"] == b"application/problem+json"
    assert more.items() <= headers.items()


def test_an_error_after_the_response_began_is_the_servers() -> None:
    """Nothing can be answered any more: the error is raised, so that the connection is closed."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise Rejected("shed", "too late")

    with pytest.raises(Rejected, match="too late"):
        asked(MeshAsgi(app, FakeHost()), http(), b"")


def test_expired_work_is_not_begun() -> None:
    """A caller whose deadline has passed gets 504 and the application never runs."""
    ran: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ran.append(1)

    sent = asked(MeshAsgi(app, FakeHost()), http("/", [(b"x-meshlib-deadline-ms", b"0")]), b"")
    assert (refusal(sent)[0], ran) == (504, [])


def test_a_declared_body_over_the_limit_is_not_read() -> None:
    """At the limit it passes; one byte more is 413 before the application runs, and the connection is closed."""
    host = FakeHost(max_request_body=4)
    assert asked(MeshAsgi(echo, host), http("/", [(b"content-length", b"4")]), b"abcd")[0]["status"] == 200
    status, headers, _ = refusal(asked(MeshAsgi(echo, host), http("/", [(b"content-length", b"5")]), b"abcde"))
    assert (status, headers[b"connection"], len(host.calls)) == (413, b"close", 1)
    assert refusal(asked(MeshAsgi(echo, host), http("/", [(b"content-length", b"9" * 5000)])))[0] == 413


def test_a_chunked_body_is_counted() -> None:
    """A body of unknown length is cut off at the limit with 413, whatever the application makes of the error."""

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    host = FakeHost(max_request_body=4)
    assert asked(MeshAsgi(echo, host), http(), b"ab", b"cd")[0]["status"] == 200
    for app in (echo, stubborn):
        sent = asked(MeshAsgi(app, host), http(), b"ab", b"cde")
        status, headers, _ = refusal(sent)
        assert (status, len(sent)) == (413, 2)
        assert b"x-meshlib-refused" not in headers


def test_a_spent_call_tells_its_caller_not_to_retry() -> None:
    """After an inner call has used up its budget, an error says so; a success does not."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served = current()
        assert served is not None
        served.spent = True
        await send({"type": "http.response.start", "status": int(scope["path"][1:]), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    mesh = MeshAsgi(app, FakeHost())
    assert (b"x-meshlib-no-retry", b"1") in asked(mesh, http("/503"), b"")[0]["headers"]
    assert asked(mesh, http("/200"), b"")[0]["headers"] == []


def test_a_relayed_refusal_is_not_the_meshs() -> None:
    """An application that passes on an upstream's answer, fields and all, does not say that it did nothing itself."""

    async def relay(scope: Scope, receive: Receive, send: Send) -> None:
        fields = [(b"X-Meshlib-Refused", b"shed"), (b"x_meshlib_no_retry", b"1"), (b"x-kept", b"1")]
        kind = "websocket.accept" if scope["type"] == "websocket" else "http.response.start"
        await send({"type": kind, "status": 503, "headers": fields})

    for kind in ("http", "websocket"):
        assert asked(MeshAsgi(relay, FakeHost()), {**http(), "type": kind})[0]["headers"] == [(b"x-kept", b"1")]


def test_a_draining_server_closes_each_connection() -> None:
    """Every response of a draining server says so, its own refusals too."""
    host = FakeHost()
    host.draining = True
    assert (b"connection", b"close") in asked(MeshAsgi(echo, host), http(), b"")[0]["headers"]
    host.in_flight.closed = True
    status, headers, _ = refusal(asked(MeshAsgi(echo, host), http(), b""))
    assert (status, headers[b"connection"]) == (503, b"close")


# Lifespan


def lifespan(app: Any, state: Any = None, receive_of: Any = None) -> list[str]:
    """Start and stop `app`; what it answered."""
    sent: list[str] = []
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"] + (": " + message["message"] if "message" in message else ""))

    scope: Scope = {"type": "lifespan", "state": {} if state is None else state}
    asyncio.run(app(scope, receive_of(receive) if receive_of else receive, send))
    return sent


def test_the_mesh_starts_before_the_application_and_stops_after_it() -> None:
    """The application may call through the mesh in its own startup and shutdown."""
    host = FakeHost()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        host.events.append("app started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        host.events.append("app stopped")
        await send({"type": "lifespan.shutdown.complete"})

    state: dict[str, Any] = {}
    assert lifespan(MeshAsgi(app, host), state) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert host.events == ["mesh started", "app started", "app stopped", "mesh stopped"]
    assert state[HOST] is host


@pytest.mark.parametrize("how", ["raises", "returns", "answers"])
def test_an_application_without_lifespan_works(how: str) -> None:
    """A bare function that knows only http is started and stopped like any other."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "raises":
            raise AssertionError(scope["type"])
        if how == "answers":
            await send({"type": "http.response.start", "status": 200, "headers": []})

    host = FakeHost()
    assert lifespan(MeshAsgi(app, host)) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert host.events == ["mesh started", "mesh stopped"]


def test_a_failing_start_is_told_to_the_server() -> None:
    """The application's own failure passes, the mesh is stopped; the mesh's failure is a sentence."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    host = FakeHost()
    assert lifespan(MeshAsgi(app, host)) == ["lifespan.startup.failed: no database"]
    assert host.events == ["mesh started", "mesh stopped"]

    class Broken(FakeHost):
        async def startup(self) -> None:
            raise OSError("no identity")

    assert lifespan(MeshAsgi(app, Broken())) == ["lifespan.startup.failed: no identity"]


def test_strict_refuses_a_server_that_hides_the_client() -> None:
    """Under a server that does not say who the client is, a strict mesh does not start, and says what to use."""
    host = FakeHost("strict")
    assert lifespan(MeshAsgi(echo, host)) == [f"lifespan.startup.failed: {NO_PEERS}"]
    assert host.events[-1] == "mesh stopped"
    assert "uvicorn --http meshlib.transport.uvicorn:PeerProtocol" in NO_PEERS
    assert lifespan(MeshAsgi(echo, FakeHost("strict")), {PEERS: True})[0] == "lifespan.startup.complete"


def test_first_use_starts_the_mesh_where_there_is_no_lifespan() -> None:
    """A server or a test client that sends no lifespan gets a started mesh all the same, once."""
    host = FakeHost()
    mesh = MeshAsgi(echo, host)
    asked(mesh, http(), b"")
    asked(mesh, http(), b"")
    assert host.events == ["mesh started"]


# Websockets


def test_websockets_have_the_same_rules() -> None:
    """No identity in strict: closed before it is accepted. Otherwise: stripped, counted, seen by the stack."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["headers"], scope["state"][PEER], current()))
        await send({"type": "websocket.accept"})

    scope = {**http("/ws", [(b"x-envoy-a", b"1")]), "type": "websocket"}
    assert asked(MeshAsgi(app, FakeHost("strict")), scope) == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    host = FakeHost()
    assert asked(MeshAsgi(app, host), scope) == [{"type": "websocket.accept"}]
    headers, peer, served = seen[0]
    assert (headers, peer) == ([], None)
    assert served is not None
    assert len(host.calls) == 1


# With a framework, over sockets

JSON = "Content-Type: application/json"


def shop() -> FastAPI:
    app = FastAPI()

    @app.get("/who")
    async def who() -> dict[str, Any]:
        served = current()
        assert served is not None
        return {"peer": str(served.peer), "attempt": served.attempt, "mirror": served.mirror}

    @app.get("/sync")
    def sync() -> str:
        served = current()
        return str(served and served.peer)

    @app.post("/orders")
    async def orders(order: dict[str, Any]) -> Any:
        return order

    @app.websocket("/ws")
    async def ws(socket: WebSocket) -> None:
        await socket.accept()

    return app


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Running, FakeHost]]:
    host = FakeHost("strict", max_request_body=100)
    with Running(shop(), host) as server:
        yield server, host


def test_fastapi_knows_its_caller(served: tuple[Running, FakeHost]) -> None:
    """In async and in threaded endpoints `current()` is the call with the verified peer."""
    server, _ = served
    cart = "spiffe://shop.example/ns/default/sa/cart"
    for fields, mirror in ((["x-meshlib-attempt: 2"], False), (["x-meshlib-attempt: 2", "x-meshlib-mirror: 1"], True)):
        status, _, body = parts(server.talk(get("/who", *fields), "cart"))
        assert (status, json.loads(body)) == (200, {"peer": cart, "attempt": 2, "mirror": mirror})
    assert b"/sa/cart" in parts(server.talk(get("/sync"), "cart"))[2]


def test_fastapi_bodies_are_limited(served: tuple[Running, FakeHost], caplog: pytest.LogCaptureFixture) -> None:
    """413 for a declared and for a chunked body, although the framework would make it a 400; no error is logged."""
    server, _ = served
    big = b'{"a": "' + b"x" * 200 + b'"}'
    assert parts(server.talk(get("/orders", JSON, method="POST", body=big), "cart"))[0] == 413
    chunked = get("/orders", JSON, "Transfer-Encoding: chunked", method="POST") + b"%x\r\n%b\r\n0\r\n\r\n" % (
        len(big),
        big,
    )
    assert parts(server.talk(chunked, "cart"))[0] == 413
    assert parts(server.talk(get("/orders", JSON, method="POST", body=b'{"a": 1}'), "cart"))[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
