"""The leaf, on both runtimes with one body of tests, against servers made of raw sockets."""

from __future__ import annotations

import asyncio
import random
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from raw_server import OK, Authority, Peer, RawServer, TestTls, answering, call, quiet_descriptors

from meshlib.call import Call, PhaseTimeouts, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import DeadlineExceeded, IdentityError, TransportError
from meshlib.runtime.blocking import drive
from meshlib.transport.asyncio_http import AsyncHttpTransport
from meshlib.transport.blocking_http import BlockingHttpTransport
from meshlib.transport.http1 import ResponseReader
from meshlib.transport.limits import HttpLimits
from meshlib.transport.pool import PoolSettings

BACKEND = "spiffe://test/ns/default/sa/backend"
Scenario = Callable[["Client"], Awaitable[Any]]


class Client:
    """A transport of either kind and a way to call a server through it."""

    def __init__(self, transport: Any, asynchronous: bool) -> None:
        self.transport, self.asynchronous = transport, asynchronous

    async def __call__(
        self, server: RawServer, made: Call | None = None, *, tls: Any = None, extra: Any = None, **settings: Any
    ) -> Reply:
        where = Endpoint("127.0.0.1", server.port)
        leaf = self.transport.leaf(where, PoolSettings(**settings), tls, extra or (lambda _: b"x-extra: 1\r\n"))
        return await leaf(made or call())

    def statistics(self, server: RawServer) -> Any:
        return self.transport.statistics()[f"127.0.0.1:{server.port}"]

    async def settle(self) -> None:
        """Let the event loop see what has happened on the sockets."""
        if self.asynchronous:
            await asyncio.sleep(0.05)
        else:
            time.sleep(0.05)


class Body:
    """A body in pieces, as both runtimes want it. A piece that is an exception is raised, a number is slept."""

    def __init__(self, client: Client, pieces: Any, framed: bool = True) -> None:
        self._pieces, self.framed, self._asynchronous, self.asked = pieces, framed, client.asynchronous, 0

    def pieces(self) -> Any:
        return self._async() if self._asynchronous else self._sync()

    def _sync(self) -> Any:
        for piece in self._pieces:
            self.asked += 1
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, bytes):
                yield piece
            else:
                time.sleep(piece)

    async def _async(self) -> Any:
        for piece in self._pieces:
            self.asked += 1
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, bytes):
                yield piece
            else:
                await asyncio.sleep(piece)


@pytest.fixture(params=["asyncio", "blocking"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a scenario on one of the runtimes; every descriptor it opened is closed at its end."""

    def run(scenario: Scenario, limits: HttpLimits | None = None) -> Any:
        options: Any = {"limits": limits or HttpLimits(), "rng": random.Random(1), "now": time.monotonic}

        async def main() -> Any:
            transport = AsyncHttpTransport(**options)
            try:
                return await scenario(Client(transport, True))
            finally:
                await transport.aclose()
                assert all(s.open == 0 for s in transport.statistics().values())

        if request.param == "asyncio":
            return asyncio.run(main())
        transport = BlockingHttpTransport(**options)
        try:
            return drive(scenario(Client(transport, False)))
        finally:
            transport.close()
            assert all(s.open == 0 for s in transport.statistics().values())

    return run


async def body_of(reply: Reply) -> bytes:
    assert reply.stream is not None
    pieces = []
    while piece := await reply.stream.read():
        pieces.append(piece)
    assert await reply.stream.read() == b""
    return b"".join(pieces)


def fails(kind: type[BaseException]) -> Any:
    return pytest.raises(kind)


# -- an exchange


def test_one_connection_serves_call_after_call(run: Any) -> None:
    """Status, reason, headers, version and body arrive; the connection is kept; extra_lines are on the wire."""

    async def scenario(client: Client) -> None:
        for number in range(5):
            reply = await client(server, call(b"/%d" % number), extra=lambda c: b"x-attempt: %d\r\n" % c.number)
            assert (reply.status, reply.reason, reply.body, reply.stream) == (200, b"OK", b"ok", None)
            assert (reply.headers, reply.http_version) == ([(b"content-length", b"2")], b"HTTP/1.1")
        statistics = client.statistics(server)
        assert (statistics.open, statistics.idle, statistics.connects_total) == (1, 1, 1)

    with quiet_descriptors(), RawServer(answering(OK)) as server:
        run(scenario)
        assert server.peers[0].seen.startswith(b"GET /0 HTTP/1.1\r\nhost: s\r\nx-attempt: 1\r\n\r\nGET /1 ")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + b"rubbish",
        OK + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong",
    ],
)
def test_a_connection_that_must_not_be_reused_is_not(run: Any, answer: bytes) -> None:
    """Connection: close, HTTP/1.0, rubbish and an unasked second response: right answers, each on a new connection."""

    async def scenario(client: Client) -> None:
        for _ in range(3):
            assert (await client(server)).body == b"ok"
        assert client.statistics(server).connects_total == 3

    with RawServer(answering(answer)) as server:
        run(scenario)


def test_bytes_while_idle_close_the_connection(run: Any) -> None:
    """A server that sends when nobody asked is not believed: the next call has a connection of its own."""

    def serve(peer: Peer) -> None:
        while peer.request() is not None:
            peer.send(OK)
            time.sleep(0.02)
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwrong")

    async def scenario(client: Client) -> None:
        for _ in range(3):
            assert (await client(server)).body == b"ok"
            await client.settle()
        assert client.statistics(server).connects_total == 3

    with RawServer(serve) as server:
        run(scenario)


def test_an_idle_connection_that_died_is_replaced_silently(run: Any) -> None:
    """The server closes after each answer without saying so: the next call succeeds on a new connection."""

    def once(peer: Peer) -> None:
        peer.request()
        peer.send(OK)

    async def scenario(client: Client) -> None:
        for _ in range(3):
            assert (await client(server)).body == b"ok"
            await client.settle()
        assert client.statistics(server).connects_total == 3

    with RawServer(once) as server:
        run(scenario)


def test_idle_timeout_and_maximum_age(run: Any) -> None:
    """A connection unused for idle_timeout_s, or older than max_age_s, does not serve again."""

    async def scenario(client: Client) -> None:
        for settings in ({"idle_timeout_s": 0.02}, {"max_age_s": 0.02}):
            before = client.transport.statistics().get(f"127.0.0.1:{server.port}")
            for _ in range(2):
                await client(server, **settings)
                await client.settle()
            made = client.statistics(server).connects_total - (before.connects_total if before else 0)
            assert made == 2, settings

    with RawServer(answering(OK)) as server:
        run(scenario)


# -- limits of time


def test_refused(run: Any) -> None:
    """Nobody listens: connect, refused, nothing sent, may be tried elsewhere."""

    async def scenario(client: Client) -> None:
        with fails(TransportError) as caught:
            await client(server)
        error = caught.value
        assert (error.phase, error.cause, error.sent, error.retryable) == ("connect", "refused", False, True)
        assert client.statistics(server).open == 0
        assert client.statistics(server).connect_failures_total == 1

    with RawServer(answering(OK)) as server:
        pass
    run(scenario)


def test_the_reply_does_not_come_in_time(run: Any) -> None:
    """Head or body late: DeadlineExceeded, read, sent; `total` only when the whole call's deadline passed."""

    def serve(peer: Peer) -> None:
        for answer in (OK, OK[:-1]):
            peer.request()
            peer.send(answer)
        peer.request()

    async def scenario(client: Client) -> None:
        await client(server)
        for total in (False, True, False):
            with fails(DeadlineExceeded) as caught:
                await client(server, call(seconds=0.05, total=total))
            error = caught.value
            assert (error.phase, error.sent, error.total) == ("read", True, total)
        assert client.statistics(server).idle == 0

    async def cut(client: Client) -> None:
        await client(server)
        with fails(DeadlineExceeded):
            await client(server, call(seconds=0.05))

    def silent(peer: Peer) -> None:
        if peer.request() and peer.number == 0:
            peer.send(OK)
        peer.request()
        peer.request()

    with RawServer(silent) as server:
        run(scenario)
    with RawServer(serve) as server:
        run(cut)


def test_a_deadline_that_has_passed_sends_nothing(run: Any) -> None:
    """The attempt's time is over before it began: no connection, no byte."""

    async def scenario(client: Client) -> None:
        with fails(DeadlineExceeded) as caught:
            await client(server, call(seconds=-1))
        assert (caught.value.phase, caught.value.sent) == ("pool", False)
        assert client.statistics(server).open == 0

    with RawServer(answering(OK)) as server:
        run(scenario)


def test_phase_timeouts_end_sooner_than_the_attempt(run: Any) -> None:
    """read: the head, and each gap; the attempt itself has five seconds."""

    def serve(peer: Peer) -> None:
        while (request := peer.request()) is not None:
            if b"/slow" in request:
                continue
            for piece in (OK[:10], OK[10:-1], OK[-1:]):
                time.sleep(0.06)
                peer.send(piece)

    async def scenario(client: Client) -> None:
        limits = PhaseTimeouts(connect=None, read=0.15, write=None, pool=None)
        assert (await client(server, call(phases=limits))).body == b"ok"  # 0.18 s in all, 0.06 s each
        with fails(DeadlineExceeded) as caught:
            await client(server, call(b"/slow", phases=limits))
        assert (caught.value.phase, caught.value.total) == ("read", False)
        assert "read timeout" in str(caught.value)

    with RawServer(serve) as server:
        run(scenario)


def test_a_server_that_does_not_read_is_a_write_timeout(run: Any) -> None:
    """A body the socket does not take: write, for bytes and for pieces, by phases.write and by the attempt."""

    def serve(peer: Peer) -> None:
        peer.sock.recv(10)
        done.wait(10)

    async def scenario(client: Client) -> None:
        big = b"x" * (8 << 20)
        for body in (big, Body(client, [b"y" * 65536] * 128)):
            for seconds, phases in ((0.1, None), (5.0, PhaseTimeouts(None, None, 0.1, None))):
                with fails(DeadlineExceeded) as caught:
                    await client(server, call(method="POST", body=body, seconds=seconds, phases=phases))
                assert (caught.value.phase, caught.value.sent) == ("write", True)

    done = threading.Event()
    with RawServer(serve) as server:
        try:
            run(scenario)
        finally:
            done.set()


# -- resets (F14)


@pytest.mark.parametrize(
    ("stage", "part"),
    [("before the head", b""), ("inside the head", OK[:20]), ("after the head", OK[:-2]), ("inside the body", OK[:-1])],
)
@pytest.mark.parametrize("reset", [True, False])
def test_reset_and_close_at_each_stage(run: Any, stage: str, part: bytes, reset: bool) -> None:
    """F14: a POST runs exactly once, the error says that it may have, and the connection is gone."""

    def serve(peer: Peer) -> None:
        if peer.request() is not None:
            peer.send(part)
            time.sleep(0.02)
            peer.reset() if reset else peer.sock.close()

    async def scenario(client: Client) -> None:
        with fails(TransportError) as caught:
            await client(server, call(method="POST", body=b"pay", lines=b"content-length: 3\r\n"))
        error = caught.value
        assert (error.phase, error.cause, error.sent) == ("read", "reset" if reset else "closed", True)
        assert not error.retryable
        assert not error.reused
        await client.settle()
        assert client.statistics(server).open == 0

    with quiet_descriptors(), RawServer(serve) as server:
        run(scenario)
        assert sum(peer.seen.count(b"pay") for peer in server.peers) == 1


def test_a_failure_on_a_used_connection_says_so(run: Any) -> None:
    """`reused`: what a retry policy must know to see the keep-alive race."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.request()

    async def scenario(client: Client) -> None:
        await client(server)
        with fails(TransportError) as caught:
            await client(server)
        assert (caught.value.cause, caught.value.reused, caught.value.sent) == ("closed", True, True)

    with RawServer(serve) as server:
        run(scenario)


def test_a_framing_error_costs_the_connection(run: Any) -> None:
    """Not HTTP, or above a limit: an error that says which, and never the same connection again."""
    limits = HttpLimits(body_bytes=10, head_bytes=300)
    answers = {
        b"/": (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "protocol"),
        b"/big": (b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n", "too_large"),
        b"/head": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400, "too_large"),
    }

    def serve(peer: Peer) -> None:
        request = peer.request()
        assert request is not None
        peer.send(answers[request.split(b" ")[1]][0])
        peer.request()

    async def scenario(client: Client) -> None:
        for target, (_, cause) in answers.items():
            with fails(TransportError) as caught:
                await client(server, call(target))
            assert (caught.value.cause, caught.value.phase) == (cause, "read")
        assert client.statistics(server).idle == 0

    with RawServer(serve) as server:
        run(scenario, limits)
        assert len(server.peers) == 3


# -- request bodies


def test_the_error_of_a_body_that_broke_off_does_not_hold_the_body(run: Any) -> None:
    """What had come of it is let go at once: an error lives as long as its traceback, and bodies have 100 MiB."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * 100_000)
        peer.sock.close()

    async def scenario(client: Client) -> None:
        with RawServer(serve) as server, pytest.raises(TransportError) as caught:
            await client(server)
        held, trace = [], caught.value.__traceback__
        while trace is not None:
            held += [v for v in trace.tb_frame.f_locals.values() if isinstance(v, ResponseReader)]
            trace = trace.tb_next
        assert held, "the traceback shows the reader, or this test proves nothing"
        assert [reader.waiting for reader in held] == [0] * len(held)

    run(scenario)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_000])
def test_bytes_bodies_arrive_whole(run: Any, size: int) -> None:
    """Below and above what is copied behind the head, and more than a socket takes at once."""

    async def scenario(client: Client) -> None:
        lines = b"content-length: %d\r\n" % size
        for _ in range(2):
            assert (await client(server, call(method="PUT", body=b"z" * size, lines=lines))).body == b"ok"
        assert client.statistics(server).connects_total == 1

    with RawServer(answering(OK)) as server:
        run(scenario)
        assert server.peers[0].seen.count(b"z") == 2 * size


def test_bodies_in_pieces(run: Any) -> None:
    """framed: chunked by us, empty pieces left out; not framed: as they are. The connection is reused."""

    async def scenario(client: Client) -> None:
        chunked = call(
            method="POST", body=Body(client, [b"abc", b"", b"defg"]), lines=b"transfer-encoding: chunked\r\n"
        )
        assert (await client(server, chunked)).body == b"ok"
        plain = call(
            method="POST", body=Body(client, [b"abc", b"", b"d"], framed=False), lines=b"content-length: 4\r\n"
        )
        assert (await client(server, plain)).body == b"ok"
        assert client.statistics(server).connects_total == 1

    with RawServer(answering(OK)) as server:
        run(scenario)
        assert b"\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\nPOST" in server.peers[0].seen
        assert server.peers[0].seen.endswith(b"\r\n\r\nabcd")


def test_a_large_body_in_pieces_waits_for_a_slow_reader(run: Any) -> None:
    """Back-pressure: what is asked of the iterator stays near what the server has taken; all of it arrives."""

    def serve(peer: Peer) -> None:
        time.sleep(0.1)
        asked.append(body.asked)
        assert peer.request() is not None
        peer.send(OK)

    asked: list[int] = []
    body: Body

    async def scenario(client: Client) -> None:
        nonlocal body
        body = Body(client, [b"q" * 65536] * 320)
        made = call(method="POST", body=body, lines=b"transfer-encoding: chunked\r\n")
        assert (await client(server, made)).body == b"ok"

    with RawServer(serve) as server:
        run(scenario)
        assert asked[0] < 320
        assert server.peers[0].seen.count(b"q") == 320 * 65536


@pytest.mark.parametrize("pause", [b"", 30.0])
def test_an_early_response_ends_the_upload(run: Any, pause: Any) -> None:
    """The answer is delivered though the server reads no more, or the iterator hangs; the connection is not reused."""

    def serve(peer: Peer) -> None:
        peer.sock.recv(1000)
        peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        done.wait(10)

    async def scenario(client: Client) -> None:
        if pause and not client.asynchronous:
            return  # a thread cannot leave an iterator that blocks it
        body = Body(client, [b"x" * 65536] * (1 if pause else 1000) + [pause])
        reply = await client(server, call(method="POST", body=body, lines=b"transfer-encoding: chunked\r\n"))
        assert (reply.status, reply.body) == (413, b"no")
        assert body.asked < 1000
        await client.settle()
        assert client.statistics(server).open == 0

    done = threading.Event()
    with RawServer(serve) as server:
        try:
            run(scenario)
        finally:
            done.set()


@pytest.mark.parametrize("framed", [True, False])
def test_an_early_response_to_a_body_that_is_stuck(run: Any, framed: bool) -> None:
    """The socket takes no more and then the answer comes: waiting for the socket alone would be a deadlock."""

    def serve(peer: Peer) -> None:
        peer.sock.recv(1000)
        time.sleep(0.1)  # the client is stuck by now
        peer.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        done.wait(10)

    async def scenario(client: Client) -> None:
        whole = b"x" * (16 << 20)
        body: Any = Body(client, [whole]) if framed else whole
        reply = await client(server, call(method="POST", body=body))
        assert (reply.status, reply.body) == (413, b"no")
        await client.settle()
        assert client.statistics(server).open == 0

    done = threading.Event()
    with RawServer(serve) as server:
        try:
            run(scenario)
        finally:
            done.set()


def test_an_error_of_the_users_iterator_is_the_users(run: Any) -> None:
    """It comes out unchanged, a TimeoutError too, and the half-sent request's connection is closed."""

    async def scenario(client: Client) -> None:
        for mine in (ValueError("mine"), TimeoutError("mine")):
            made = call(method="POST", body=Body(client, [b"abc", mine]), lines=b"transfer-encoding: chunked\r\n")
            with fails(type(mine)) as caught:
                await client(server, made)
            assert caught.value is mine
        await client.settle()
        assert client.statistics(server).open == 0

    with RawServer(answering(OK)) as server:
        run(scenario)


@pytest.mark.parametrize(
    ("answer", "body_sent"),
    [(b"HTTP/1.1 100 Continue\r\n\r\n", True), (b"", True), (b"HTTP/1.1 417 No\r\ncontent-length: 0\r\n\r\n", False)],
)
def test_expect_100_continue(run: Any, answer: bytes, body_sent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """100: sent at once. Nothing: sent after a bounded wait. A final answer: not sent at all."""
    monkeypatch.setattr("meshlib.transport.phases.CONTINUE_S", 0.1 if not answer else 5.0)

    def serve(peer: Peer) -> None:
        while b"\r\n\r\n" not in peer.seen:
            peer.more()
        heads.append(bytes(peer.seen))
        peer.send(answer)
        if peer.request() is not None:
            peer.send(OK)

    heads: list[bytes] = []

    async def scenario(client: Client) -> None:
        lines = b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n"
        reply = await client(server, call(method="POST", body=Body(client, [b"abc"]), lines=lines))
        assert reply.status == (200 if body_sent else 417)

    with RawServer(serve) as server:
        run(scenario)
        assert heads[0].endswith(b"\r\n\r\n")
        assert (b"abc" in server.peers[0].seen) is body_sent


def test_a_request_that_may_not_be_sent(run: Any) -> None:
    """A broken target is an error of the caller; nothing reaches the server."""

    async def scenario(client: Client) -> None:
        with fails(TransportError) as caught:
            await client(server, call(b"/a b"))
        assert (caught.value.cause, caught.value.sent) == ("local", False)

    with RawServer(answering(OK)) as server:
        run(scenario)
        assert all(not peer.seen for peer in server.peers)


# -- streamed replies


@pytest.mark.parametrize("framing", ["declared", "chunked", "endless"])
def test_a_streamed_reply_comes_piece_by_piece(run: Any, framing: str) -> None:
    """The head is returned before the body; every byte arrives; the connection is reused where it may be."""
    size = 2_000_000

    def serve(peer: Peer) -> None:
        while peer.request() is not None:
            head = {"declared": b"content-length: %d\r\n" % size, "chunked": b"transfer-encoding: chunked\r\n"}
            peer.send(b"HTTP/1.1 200 OK\r\n" + head.get(framing, b"") + b"\r\n")
            time.sleep(0.02)
            for _ in range(20):
                piece = b"s" * (size // 20)
                peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece)
            if framing == "chunked":
                peer.send(b"0\r\nx-sum: 7\r\n\r\n")
            if framing == "endless":
                return

    async def scenario(client: Client) -> None:
        for _ in range(2):
            reply = await client(server, call(streaming=True, seconds=5))
            assert await body_of(reply) == b"s" * size
            assert reply.trailers == ([(b"x-sum", b"7")] if framing == "chunked" else [])
        assert client.statistics(server).connects_total == (2 if framing == "endless" else 1)

    with RawServer(serve) as server:
        run(scenario)


def test_a_streamed_reply_that_is_already_complete_is_plain(run: Any) -> None:
    """Nothing to stream: the body is there and the connection is free."""

    async def scenario(client: Client) -> None:
        reply = await client(server, call(streaming=True))
        assert (reply.body, reply.stream) == (b"ok", None)
        assert client.statistics(server).idle == 1

    with RawServer(answering(OK)) as server:
        run(scenario)


def test_back_pressure_on_a_streamed_reply(run: Any) -> None:
    """A user who does not read does not make us read: the server cannot send what nobody takes."""
    size = 24 << 20

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(24):
            peer.send(b"s" * (1 << 20))
            sent.append(1)

    sent: list[int] = []

    async def scenario(client: Client) -> None:
        reply = await client(server, call(streaming=True))
        for _ in range(4):
            await client.settle()
        assert len(sent) < 24
        assert len(await body_of(reply)) == size

    with RawServer(serve) as server:
        run(scenario)


class Route:
    """The part of a route that a stream looks at."""

    stream_idle_timeout_s = 0.1


def test_a_stream_outlives_the_attempt_but_not_a_gap(run: Any) -> None:
    """Neither attempt nor call deadline ends a stream that flows; a gap longer than the route's limit does."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        for _ in range(6):
            time.sleep(0.04)
            peer.send(b"s")
        peer.request()

    async def scenario(client: Client) -> None:
        made = call(streaming=True, seconds=0.1, total=True)
        made.route = Route()
        reply = await client(server, made)
        assert reply.stream is not None
        got = b""
        with fails(DeadlineExceeded) as caught:
            while True:
                got += await reply.stream.read()
        assert got == b"ssssss"
        assert (caught.value.phase, caught.value.sent, caught.value.total) == ("read", True, False)
        with fails(DeadlineExceeded):
            await reply.stream.read()

    with RawServer(serve) as server:
        run(scenario)


def test_a_stream_that_is_cut_is_an_error_and_stays_one(run: Any) -> None:
    """What came is delivered, then the error, again and again: never an end that looks clean."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
        time.sleep(0.02)

    async def scenario(client: Client) -> None:
        reply = await client(server, call(streaming=True))
        assert reply.stream is not None
        await client.settle()
        assert await reply.stream.read() == b"abc"
        for _ in range(2):
            with fails(TransportError) as caught:
                await reply.stream.read()
            assert caught.value.cause == "closed"

    with RawServer(serve) as server:
        run(scenario)


@pytest.mark.parametrize("how", ["aclose", "discard", "forgotten"])
def test_a_stream_given_up_frees_its_connection(run: Any, how: str) -> None:
    """aclose, discard, garbage collection: the connection is closed, its slot can be used."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
        peer.request()

    async def scenario(client: Client) -> None:
        for _ in range(3):
            reply = await client(server, call(streaming=True), max_connections=1)
            assert reply.stream is not None
            if how == "aclose":
                await reply.stream.aclose()
                await reply.stream.aclose()
                with fails(TransportError):
                    await reply.stream.read()
            elif how == "discard":
                await reply.discard()
            del reply
            await client.settle()

    with quiet_descriptors(), RawServer(serve) as server:
        run(scenario)
        assert len(server.peers) == 3


# -- TLS


def _server_context(authority: Authority, trust: Authority | None = None) -> ssl.SSLContext:
    return authority.context(BACKEND, ssl.PROTOCOL_TLS_SERVER, trust)


def _client(authority: Authority, expected: str = BACKEND, trust: Authority | None = None, **options: Any) -> TestTls:
    me = "spiffe://test/ns/default/sa/caller"
    return TestTls(authority.context(me, ssl.PROTOCOL_TLS_CLIENT, trust), expected, **options)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def test_mtls_call_after_call_and_large_bodies(run: Any, authority: Authority) -> None:
    """Mutual TLS 1.3 with the identity verified: same answers, one connection."""

    async def scenario(client: Client) -> None:
        tls = _client(authority)
        for size in (0, 10, 2_000_000):
            lines = b"content-length: %d\r\n" % size
            reply = await client(server, call(method="POST", body=b"z" * size, lines=lines), tls=tls)
            assert reply.body == b"ok" * 300_000
        assert client.statistics(server).connects_total == 1

    big = b"HTTP/1.1 200 OK\r\ncontent-length: 600000\r\n\r\n" + b"ok" * 300_000
    with quiet_descriptors(), RawServer(answering(big), _server_context(authority)) as server:
        run(scenario)


def test_a_wrong_peer_gets_no_byte(run: Any, authority: Authority) -> None:
    """The SPIFFE id is not the expected one: IdentityError with both ids, 0 application bytes at the server."""

    async def scenario(client: Client) -> None:
        with fails(IdentityError) as caught:
            await client(server, tls=_client(authority, "spiffe://test/ns/default/sa/other"))
        error = caught.value
        assert (error.expected, error.actual, error.sent) == ("spiffe://test/ns/default/sa/other", BACKEND, False)
        assert client.statistics(server).open == 0

    with RawServer(answering(OK), _server_context(authority)) as server:
        run(scenario)
        assert all(not peer.seen for peer in server.peers)


def test_a_peer_of_another_authority_gets_no_byte(run: Any, authority: Authority) -> None:
    """An unknown root: IdentityError, nothing sent."""

    async def scenario(client: Client) -> None:
        with fails(IdentityError) as caught:
            await client(server, tls=_client(authority))
        assert caught.value.expected == BACKEND

    stranger = Authority()
    with RawServer(answering(OK), _server_context(stranger)) as server:
        run(scenario)
        assert all(not peer.seen for peer in server.peers)


def test_a_server_that_refuses_our_certificate_is_an_identity_error(run: Any, authority: Authority) -> None:
    """TLS 1.3: the alert arrives at the first read; without an alert it would be a plain close."""

    async def scenario(client: Client) -> None:
        stranger = Authority()
        with fails(IdentityError) as caught:
            await client(server, tls=_client(stranger, trust=authority))
        assert "refused our certificate" in str(caught.value)

    with RawServer(answering(OK), _server_context(authority)) as server:
        run(scenario)


def test_an_end_without_close_notify_is_a_cut(run: Any, authority: Authority) -> None:
    """An EOF body under TLS ends by close_notify only."""

    def serve(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        if peer.number == 0:
            peer.sock.unwrap()  # type: ignore[attr-defined]

    async def scenario(client: Client) -> None:
        tls = _client(authority)
        assert (await client(server, tls=tls)).body == b"abc"
        with fails(TransportError) as caught:
            await client(server, tls=tls)
        assert caught.value.cause == "closed"

    with RawServer(serve, _server_context(authority)) as server:
        run(scenario)


def test_a_handshake_that_never_ends(run: Any, authority: Authority) -> None:
    """A server that accepts and says nothing: DeadlineExceeded in connect, nothing sent. One that hangs up: closed."""

    def serve(peer: Peer) -> None:
        if peer.number == 0:
            done.wait(10)

    async def scenario(client: Client) -> None:
        with fails(DeadlineExceeded) as caught:
            await client(server, tls=_client(authority), connect_timeout_s=0.1)
        assert (caught.value.phase, caught.value.sent) == ("connect", False)
        with fails(TransportError) as cut:
            await client(server, tls=_client(authority))
        assert (cut.value.phase, cut.value.cause, cut.value.sent) == ("connect", "closed", False)
        await client.settle()
        assert client.statistics(server).open == 0

    done = threading.Event()
    with quiet_descriptors(), RawServer(serve) as server:
        try:
            run(scenario)
        finally:
            done.set()


def test_a_connection_does_not_outlive_our_certificate(run: Any, authority: Authority) -> None:
    """Its age is limited by not_after: with a certificate that has ended, no connection serves twice."""

    async def scenario(client: Client) -> None:
        tls = _client(authority, life_s=0.0)
        for _ in range(3):
            await client(server, tls=tls)
        assert client.statistics(server).connects_total == 3

    with RawServer(answering(OK), _server_context(authority)) as server:
        run(scenario)


# -- closing


def test_retired_addresses(run: Any) -> None:
    """An address that left the policy: idle connections go at once; the leaf still works but keeps none."""

    async def scenario(client: Client) -> None:
        await client(server)
        leaf = client.transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(), None, lambda _: b"")
        client.transport.retire(["127.0.0.1:1"])
        await client.settle()
        client.transport.retire(["127.0.0.1:1"])
        assert client.transport.statistics() == {}
        assert (await leaf(call())).body == b"ok"
        await client.settle()
        assert (await client(server)).body == b"ok"
        assert client.statistics(server).idle == 1

    with quiet_descriptors(), RawServer(answering(OK)) as server:
        run(scenario)


def test_a_closed_transport_refuses(run: Any) -> None:
    """RuntimeError, as from any closed resource."""

    async def scenario(client: Client) -> None:
        await client(server)
        closing = client.transport.aclose() if client.asynchronous else client.transport.close()
        if closing is not None:
            await closing
        with fails(RuntimeError):
            await client(server)

    with RawServer(answering(OK)) as server:
        run(scenario)
