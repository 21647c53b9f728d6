"""The connection: identity, TLS of the mesh's own, limits, malformed requests; over real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving_host import ORDERS, FakeHost, Running, get, parts, read_all

from meshlib.identity.tls import peer_of
from meshlib.transport.asgi import Receive, Scope, Send
from meshlib.transport.headers import PEER
from meshlib.transport.uvicorn import PeerProtocol

VECTORS = Path(__file__).parents[2] / "../shared/conformance/http_malformed.json"


class Quick(PeerProtocol):
    """Small bounds, so that a test waits for a fraction of a second."""

    HEAD_TIMEOUT_S = 0.3
    BODY_STRETCH_S = 0.3
    HANDSHAKE_TIMEOUT_S = 0.3
    CONNECTIONS_PER_PEER_MAX = 3


class App:
    """Says who asked; remembers what it was asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        self.headers = list(scope["headers"])
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        answer = str(scope["state"].get(PEER)).encode()
        fields = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": answer})


@pytest.fixture(scope="module")
def app() -> App:
    return App()


@pytest.fixture(scope="module")
def plain(app: App) -> Iterator[Running]:
    with Running(app, FakeHost(), max_requests=None) as server:
        yield server


@pytest.fixture(scope="module")
def quick(app: App) -> Iterator[Running]:
    with Running(app, FakeHost(), Quick) as server:
        yield server


@pytest.fixture(scope="module")
def strict(app: App) -> Iterator[Running]:
    with Running(app, FakeHost("strict"), Quick) as server:
        yield server


@pytest.fixture(autouse=True)
def _forget(app: App) -> None:
    app.paths.clear()
    app.bodies.clear()


def test_the_peer_is_the_connections(strict: Running) -> None:
    """The verified SPIFFE id of the client is in the scope's state, on every connection its own."""
    for caller in ("cart", "web.edge"):
        status, _, body = parts(strict.talk(get(), caller))
        assert (status, body.decode()) == (
            200,
            f"spiffe://shop.example/ns/{(caller + '.default').split('.')[1]}/sa/{caller.split('.')[0]}",
        )


def test_the_client_sees_who_serves(strict: Running) -> None:
    """TLS is started on the accepted connection with the mesh's certificate; nothing was said to uvicorn about it."""
    with strict.connect("cart") as connection:
        assert peer_of(connection) == ORDERS


def test_plaintext_is_not_served_in_strict(strict: Running, app: App) -> None:
    """HTTP without TLS, and TLS without a certificate, are closed without a byte of HTTP."""
    assert not strict.talk(get()).startswith(b"HTTP")
    anonymous = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    with strict.connect() as plain, anonymous.wrap_socket(plain) as connection:
        connection.sendall(get())
        assert read_all(connection) == b""
    assert app.paths == []


def test_a_handshake_that_does_not_come_is_closed(strict: Running) -> None:
    """A connection that never begins its handshake ends after the handshake timeout."""
    with strict.connect() as silent:
        assert read_all(silent) == b""


def test_early_data_after_the_handshake_is_kept(strict: Running) -> None:
    """A request sent in the same flight as the end of the handshake is served, many times over."""
    for _ in range(10):
        assert parts(strict.talk(get("/early"), "cart"))[0] == 200


def test_the_same_on_uvloop(app: App) -> None:
    """On uvloop, which reads before a protocol can pause, TLS begins with the first byte all the same."""
    running = Running(app, FakeHost("strict"), Quick)
    running.loop_factory = pytest.importorskip("uvloop").new_event_loop
    with running as server:
        for _ in range(5):
            assert parts(server.talk(get(), "cart"))[2].endswith(b"/sa/cart")
            assert not server.talk(get()).startswith(b"HTTP")


def vectors() -> list[Any]:
    if not VECTORS.exists():
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason="no conformance vectors here"))]
    found = json.loads(VECTORS.read_text())["http1"]
    return [pytest.param(v, id=v["id"]) for v in found if v["kind"] == "request" and v["accept"] is False]


@pytest.mark.parametrize("vector", vectors())
def test_malformed_requests_never_run(
    vector: dict[str, Any], plain: Running, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """llhttp's malformed requests: no handler runs, an answer or a close at once, nothing logged as an error."""
    answer = plain.talk(base64.b64decode(vector["bytes_b64"]))
    assert app.paths == []
    assert answer == b"" or parts(answer)[0] in (400, 431, 501)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_header_bounds(plain: Running, app: App) -> None:
    """At the bound a request is served, one beyond it is 431, also when the header never ends."""
    fields = [f"x-{n}: v" for n in range(98)]
    assert parts(plain.talk(get("/", *fields)))[0] == 200
    assert parts(plain.talk(get("/", *fields, "x-more: v")))[0] == 431
    assert parts(plain.talk(get("/", "x-big: " + "a" * 60_000)))[0] == 200
    assert parts(plain.talk(get("/", "x-big: " + "a" * 66_000)))[0] == 431
    assert len(app.paths) == 2
    with plain.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx-endless: ")
        answer = b""
        for _ in range(200):
            try:
                connection.sendall(b"a" * 8192)
                connection.settimeout(0.01)
                answer += connection.recv(4096)
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("1.6 MB of header were taken")
        assert answer == b"" or parts(answer)[0] == 431


def test_target_bound(plain: Running) -> None:
    """A target of 8 KiB is served, a longer one is 414."""
    most = PeerProtocol.TARGET_BYTES_MAX
    assert parts(plain.talk(get("/" + "a" * (most - 1))))[0] == 200
    assert parts(plain.talk(get("/" + "a" * most)))[0] == 414


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/", "Transfer-Encoding: gzip"), 501),
        (get("/", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip"), 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (get("/a%00b"), 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET " + b"/" * 40 + b"\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 40, 400),
    ],
)
def test_refused_requests(request_bytes: bytes, status: int, plain: Running, app: App) -> None:
    """Codings, versions and forms we do not speak, and too many requests at once, are refused before anything runs."""
    assert parts(plain.talk(request_bytes))[0] == status
    assert app.paths == []


def test_pipelined_requests_are_answered_in_order(plain: Running, app: App) -> None:
    """Requests sent together are served one after another on one connection."""
    one = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = plain.talk(one % 1 + one % 2 + get("/3"))
    assert answer.count(b"HTTP/1.1 200") == 3
    assert app.paths == ["/1", "/2", "/3"]


def test_trailers_are_not_headers(plain: Running, app: App) -> None:
    """What comes after a chunked body is never among the fields that were checked."""
    body = b"3\r\nabc\r\n0\r\nx-meshlib-attempt: 7\r\n\r\n"
    assert parts(plain.talk(get("/", "Transfer-Encoding: chunked", method="POST") + body))[0] == 200
    assert app.bodies == [b"abc"]
    assert b"x-meshlib-attempt" not in dict(app.headers)


def test_an_upgrade_is_ignored(plain: Running) -> None:
    """A protocol we do not have is not switched to; the request is served and the connection closed."""
    with plain.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        assert parts(read_all(connection))[0] == 200


def test_a_malformed_body_ends_the_request(plain: Running, app: App) -> None:
    """Framing that breaks while the application reads: it sees a disconnect, the client a close."""
    with plain.connect() as connection:
        connection.sendall(get("/", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n")
        until(lambda: bool(app.paths))
        connection.sendall(b"zz\r\n")
        assert parts(read_all(connection))[0] == 400
    assert app.bodies == []


def test_a_slow_head_is_408(quick: Running, app: App) -> None:
    """Headers that do not end in time: 408 and a close; a connection that says nothing at all is just closed."""
    with quick.connect() as dripping:
        dripping.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert parts(read_all(dripping))[0] == 408
    assert app.paths == []


def test_blank_lines_do_not_keep_a_connection(quick: Running) -> None:
    """After a response, bytes that begin no request do not hold the connection for ever."""
    with quick.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        received = b""
        while not received.endswith(b"None"):
            received += connection.recv(4096)
        connection.sendall(b"\r\n")
        assert read_all(connection) == b""


def test_a_slow_body_is_closed(quick: Running, app: App) -> None:
    """A body below 100 B/s over a stretch is given up; the application sees a disconnect."""
    with quick.connect() as dripping:
        dripping.sendall(get("/slow", "Content-Length: 1000", method="POST") + b"a")
        assert parts(read_all(dripping))[0] == 408
    assert app.paths == ["/slow"]
    assert app.bodies == []


def test_a_steady_body_is_not_slow(quick: Running, app: App) -> None:
    """A body that keeps the pace over several stretches is read to its end."""
    with quick.connect() as steady:
        steady.sendall(get("/steady", "Content-Length: 400", method="POST"))
        for _ in range(8):
            time.sleep(0.1)
            steady.sendall(b"a" * 50)
        assert parts(read_all(steady))[0] == 200
    assert app.bodies == [b"a" * 400]


def test_connections_of_one_address_are_bounded(quick: Running) -> None:
    """One more than the bound is closed at once; a place that is free again is given away."""
    held = [quick.connect() for _ in range(Quick.CONNECTIONS_PER_PEER_MAX)]
    try:
        for connection in held:
            connection.sendall(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(4096)
        assert quick.talk(get()) == b""
    finally:
        for connection in held:
            connection.close()
    until(lambda: quick.talk(get()).startswith(b"HTTP/1.1 200"))


class Hello(asyncio.Protocol):
    """Stands in for a websocket implementation: says hello, and nothing more."""

    def __init__(self, **_of_uvicorn: Any) -> None: ...

    def connection_made(self, transport: Any) -> None:
        transport.write(b"hello")


class Upgrading(Quick):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = Hello


def test_websockets_are_counted_until_they_are_gone(app: App) -> None:
    """A connection that was handed over counts against its address, and no longer when it has ended."""
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with Running(app, FakeHost(), Upgrading) as server:
        held = [server.connect() for _ in range(Quick.CONNECTIONS_PER_PEER_MAX)]
        for connection in held:
            connection.sendall(upgrade)
            assert connection.recv(10) == b"hello"
        assert server.talk(get()) == b""
        for connection in held:
            connection.close()
        until(lambda: server.talk(get()).startswith(b"HTTP/1.1 200"))


def receive_until(connection: socket.socket, end: bytes) -> None:
    """Take what comes, until it ends so."""
    received = b""
    while not received.endswith(end):
        piece = connection.recv(4096)
        assert piece, received
        received += piece


def until(condition: Any) -> None:
    """Wait for what the server's thread is about to do."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not happen within 5 s")


def test_keep_alive_outlives_the_clients_idle_time() -> None:
    """The server keeps an idle connection longer than our clients do (60 s): none is closed under a request."""
    assert PeerProtocol.KEEP_ALIVE_S > 60
    assert socket.getdefaulttimeout() is None


SECRET: contextvars.ContextVar[str] = contextvars.ContextVar("secret", default="clean")


async def leaky(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells what the context held, then leaves something in it while the body makes reading pause and resume."""
    if scope["type"] != "http":
        return
    found = SECRET.get().encode()
    SECRET.set("alice")
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(found))]})
    await send({"type": "http.response.body", "body": found})


def test_a_request_does_not_see_the_context_of_another() -> None:
    """After a body that paused reading, and pipelined behind another request, the context is the connection's own."""
    big = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n" + b"a" * 400_000
    with Running(leaky) as server:
        with server.connect() as connection:
            connection.sendall(big)
            receive_until(connection, b"clean")
            connection.sendall(get())
            assert parts(read_all(connection))[2] == b"clean"
        answer = server.talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + get())
        assert answer.count(b"clean") == 3


@pytest.mark.parametrize("unfinished", [b"0\r\nx: ", b"1;x=", b"1\r\na\r\n0\r\nx: "])
def test_framing_without_end_is_refused(unfinished: bytes, plain: Running, app: App) -> None:
    """A trailer or a chunk extension that does not end is 431, before it costs more than its bound."""
    with plain.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + unfinished)
        until(lambda: bool(app.paths))
        flood(connection, b"a")
        answer = read_all(connection)
        assert answer == b"" or parts(answer)[0] == 431
    assert app.bodies == []


def flood(connection: socket.socket, piece: bytes, most: int = 16 << 20) -> None:
    """Send `piece` over and over until the server has had enough."""
    block = piece * (65536 // len(piece))
    for _ in range(most // len(block)):
        try:
            connection.sendall(block)
        except ConnectionError:
            return
    pytest.fail(f"{most} bytes were taken")


async def early(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a look at the body."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


def test_the_rest_of_an_answered_body_is_bounded() -> None:
    """What comes after an early answer is read up to the drain, and the connection goes on; beyond it is closed."""
    begin = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Running(early, FakeHost(), Quick) as server:
        with server.connect() as connection:
            connection.sendall(begin)
            receive_until(connection, b"no")
            connection.sendall(b"5\r\nabcde\r\n0\r\n\r\n" + get())
            assert parts(read_all(connection))[0] == 404
        with server.connect() as connection:
            connection.sendall(begin)
            receive_until(connection, b"no")
            flood(connection, b"1000\r\n" + b"a" * 4096 + b"\r\n")
        with server.connect() as dripping:
            dripping.sendall(begin)
            received = read_all(dripping)
        assert received.count(b"HTTP/1.1") == 1


def test_a_body_over_the_limit_is_refused_by_the_connection_too(plain: Running) -> None:
    """In many pieces at once, before the adapter has seen one: 413."""
    pieces = b"200\r\n" + b"a" * 512 + b"\r\n"
    request = get("/", "Transfer-Encoding: chunked", method="POST") + pieces * 4 + b"0\r\n\r\n"
    assert parts(plain.talk(request))[0] == 413


class Slow:
    """Starts its answer, and ends it when it is told."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.paths: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"AA", "more_body": True})
        await asyncio.get_running_loop().run_in_executor(None, self.go.wait, 5)
        await send({"type": "http.response.body", "body": b"AA"})


def test_a_refusal_is_not_written_into_another_response() -> None:
    """Garbage behind a pipelined request, while the first is answered: a close, and not a byte among its body."""
    app = Slow()
    with Running(app, FakeHost()) as server, server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: bool(app.paths))
        connection.sendall(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n\x00garbage\r\n\r\n")
        received = read_all(connection)
        app.go.set()
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"AA")


UPGRADE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"


def test_a_websocket_waits_for_nobody() -> None:
    """An upgrade behind another request, in one packet or while it is answered, or with a body, is refused."""
    app = Slow()
    with Running(app, FakeHost(), Upgrading) as server:
        assert parts(server.talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE + b"\r\n"))[0] == 400
        assert parts(server.talk(UPGRADE + b"Content-Length: 3\r\n\r\nabc"))[0] == 400
        assert app.paths == []
        with server.connect() as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            until(lambda: bool(app.paths))
            connection.sendall(UPGRADE + b"\r\n")
            received = read_all(connection)
            app.go.set()
    assert b"hello" not in received


class Impatient(Quick):
    WRITE_STRETCH_S = 0.2


def test_a_reader_that_does_not_read_is_cut_off() -> None:
    """A response that nobody takes is given up after a stretch; the application's send returns."""
    ended = threading.Event()

    async def big(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
        ended.set()

    for tls in (None, "strict"):
        ended.clear()
        with Running(big, FakeHost(tls), Impatient) as server, server.connect(tls and "cart") as connection:
            connection.sendall(get())
            assert ended.wait(5)
