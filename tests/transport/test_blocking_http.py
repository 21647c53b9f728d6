"""What only threads have: one pool for many of them, waiting under a lock, an interrupt from the keyboard."""

from __future__ import annotations

import gc
import random
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from raw_server import OK, Peer, RawServer, answering, call, mute, quiet_descriptors

from meshlib.call import PhaseTimeouts
from meshlib.endpoint import Endpoint
from meshlib.errors import DeadlineExceeded, Rejected, TransportError
from meshlib.runtime.blocking import drive
from meshlib.transport.blocking_connection import BlockingConnection
from meshlib.transport.blocking_http import BlockingHttpTransport
from meshlib.transport.http1 import ResponseReader
from meshlib.transport.limits import HttpLimits
from meshlib.transport.pool import PoolSettings


class Client:
    """A transport with one leaf; closed at the end, and then nothing is open."""

    def __init__(self, server: RawServer, **settings: Any) -> None:
        self.transport = BlockingHttpTransport(limits=HttpLimits(), rng=random.Random(1), now=time.monotonic)
        where = Endpoint("127.0.0.1", server.port)
        self.leaf = self.transport.leaf(where, PoolSettings(**settings), None, lambda _: b"")

    def __call__(self, *args: Any, **options: Any) -> Any:
        return drive(self.leaf(call(*args, **options)))

    @property
    def statistics(self) -> Any:
        (only,) = self.transport.statistics().values()
        return only

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()
        assert self.transport.statistics() == {}


def echoing(peer: Peer) -> None:
    while (request := peer.request()) is not None:
        number = request.split(b" ")[1][1:]
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(number), number))


def test_many_threads_share_few_connections() -> None:
    """Eight threads, three connections: every answer is the caller's own, the limit holds, all end up idle."""
    with quiet_descriptors(), RawServer(echoing) as server, Client(server, max_connections=3) as client:

        def worker(who: int) -> None:
            for turn in range(50):
                number = b"%d" % (who * 1000 + turn)
                assert client(b"/" + number).body == number
                assert client.statistics.open <= 3

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(worker, range(8)))
        now = client.statistics
        assert (now.open, now.waiting, now.connecting) == (now.idle, 0, 0)
        assert now.connects_total == len(server.peers) == 3


def test_waiting_is_bounded_in_number_and_time() -> None:
    """One connection, one place in the queue: the third is Rejected, the second's wait ends in pool, not sent."""
    go = threading.Event()

    def serve(peer: Peer) -> None:
        while peer.request() is not None:
            go.wait(5)
            peer.send(OK)

    with RawServer(serve) as server, Client(server, max_connections=1, max_pending=1) as client:
        with ThreadPoolExecutor(2) as threads:
            busy = threads.submit(client)
            while not client.statistics.open or client.statistics.connecting:
                time.sleep(0.001)
            waiting = threads.submit(client, phases=PhaseTimeouts(None, None, None, 0.2))
            while not client.statistics.waiting:
                time.sleep(0.001)
            with pytest.raises(Rejected, match="max_pending"):
                client()
            with pytest.raises(DeadlineExceeded) as caught:
                waiting.result()
            assert (caught.value.phase, caught.value.sent) == ("pool", False)
            go.set()
            assert busy.result().body == b"ok"
        assert client().body == b"ok"
        assert client.statistics.waiting == 0


def test_a_waiter_is_given_the_returned_connection_or_the_lost_ones_slot() -> None:
    """Callers that wait go on when a connection comes back, and when it breaks."""

    def serve(peer: Peer) -> None:
        while peer.request() is not None:
            time.sleep(0.02)
            peer.send(OK)
            if peer.number % 2:
                return

    with RawServer(serve) as server, Client(server, max_connections=1) as client:

        def worker(_: int) -> bool:
            try:
                return bool(client().body == b"ok")
            except TransportError as error:
                return error.reused  # the keep-alive race, told as such

        with ThreadPoolExecutor(6) as threads:
            assert all(threads.map(worker, range(12)))
        assert client.statistics.waiting == 0


def test_an_interrupt_leaves_nothing_behind() -> None:
    """KeyboardInterrupt in the middle of an exchange closes the connection; the slot is free."""

    def lines(_: Any) -> bytes:
        raise KeyboardInterrupt

    with RawServer(answering(OK)) as server, Client(server, max_connections=1) as client:
        client()
        broken = client.transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(max_connections=1), None, lines)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                drive(broken(call()))
            assert client.statistics.open == 0
        assert client().body == b"ok"


def test_an_address_that_left_is_forgotten_with_its_last_connection() -> None:
    """retire(): a busy connection ends its call first; then nothing is left of the address."""
    with RawServer(answering(BEGUN)) as server, Client(server) as client:
        reply = client(streaming=True)
        client.transport.retire(())
        assert client.statistics.open == 1
        drive(reply.stream.aclose())
        assert client.transport.statistics() == {}
        assert client.transport._pools == {}


def test_tls_that_cannot_encrypt_is_a_broken_connection() -> None:
    """An ssl.SSLError of our own side is told as ours, never raised as it is."""

    class Broken:
        def encrypt(self, data: bytes) -> bytes:
            raise ssl.SSLError(1, "protocol is shutdown")

    with RawServer(answering(OK)) as server, Client(server) as client:
        client()
        (connection,) = client.transport._pools[(f"127.0.0.1:{server.port}", "")].state.connections
        connection._tls = Broken()  # type: ignore[assignment]
        with pytest.raises(TransportError, match="protocol is shutdown") as caught:
            client()
        assert (caught.value.phase, caught.value.cause, caught.value.reused) == ("write", "reset", True)
        assert client.statistics.open == 0


def test_closing_ends_calls_of_other_threads() -> None:
    """close(): a thread that waits for a reply gets an error, at once."""
    with RawServer(mute) as server, Client(server) as client, ThreadPoolExecutor(1) as threads:
        busy = threads.submit(client)
        while not server.peers or not server.peers[0].seen:
            time.sleep(0.001)
        client.transport.close()
        with pytest.raises(TransportError):
            busy.result(2)


BEGUN = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1"


@pytest.mark.parametrize("way", ["collected", "closed"])
def test_a_reply_given_up_inside_the_pools_lock(way: str) -> None:
    """The garbage collector runs where it likes, also under the lock: it must not wait for it. A waiter gets the slot.

    `closed`: a generator that is collected closes the stream it has open.
    """

    def serve(peer: Peer) -> None:
        while peer.request() is not None:
            peer.send(OK if peer.number else BEGUN)

    with RawServer(serve) as server, Client(server, max_connections=1) as client:
        kept = [client(streaming=True)]
        (pool,) = client.transport._pools.values()

        def give_up() -> None:
            with pool.lock:
                if way == "closed":
                    drive(kept[0].stream.aclose())
                del kept[0]
                gc.collect()

        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(client)
            while not client.statistics.waiting:
                time.sleep(0.001)
            collector = threading.Thread(target=give_up, daemon=True)
            collector.start()
            collector.join(5)
            assert not collector.is_alive()
            assert waiting.result(4).body == b"ok"


class Asleep(socket.socket):
    """A socket on which nothing ever comes; it waits on a clock of its own."""

    now = 0.0
    waits = 0

    def recv(self, *_: Any) -> bytes:
        waited = self.gettimeout()
        assert waited is not None
        self.now += waited
        self.waits += 1
        raise TimeoutError("timed out")

    def send(self, *_: Any) -> int:
        return int(bool(self.recv()))


@pytest.mark.parametrize("armed_for", [5.0, 5.2, 4.0, 60.0])
@pytest.mark.parametrize("body", [b"", None])
def test_a_limit_is_kept_to_the_instant(armed_for: float, body: bytes | None) -> None:
    """Whatever the socket's timeout was set to before: a wait ends at the limit, in a few steps, never after it."""
    with Asleep() as asleep:
        connection = BlockingConnection(asleep, "a:1", lambda: asleep.now, lambda *_: None)
        asked = call()
        for seconds in (armed_for, 5.0):
            asked.attempt_deadline = asked.deadline = asleep.now + seconds
            with pytest.raises(DeadlineExceeded) as caught:
                if body is None:
                    connection._send(asked, ResponseReader("GET", HttpLimits()), b"head")
                else:
                    connection._receive(ResponseReader("GET", HttpLimits()), asked, asked.deadline)
            assert caught.value.phase == ("write" if body is None else "read")
            assert asleep.now == pytest.approx(asked.deadline, abs=1e-6)
        assert asleep.waits <= 8


def test_socket_timeouts_are_set_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with the same limit set the socket's timeout once, not twice per call."""
    with RawServer(answering(OK)) as server, Client(server) as client:
        client()
        (connection,) = client.transport._pools[(f"127.0.0.1:{server.port}", "")].state.connections
        before = connection._timeout
        for _ in range(20):
            client()
        assert connection._timeout == before
