"""What only an event loop has: cancellation at every await, storms, waiting in the pool, one transport per loop."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from raw_server import OK, Peer, RawServer, answering, call, descriptors, mute, quiet_descriptors

from meshlib.call import PhaseTimeouts
from meshlib.endpoint import Endpoint
from meshlib.errors import DeadlineExceeded, MeshError, Rejected, TransportError
from meshlib.transport import asyncio_http
from meshlib.transport.asyncio_http import AsyncHttpTransport
from meshlib.transport.limits import HttpLimits
from meshlib.transport.pool import CONNECTING_MAX, PoolSettings

Scenario = Callable[[AsyncHttpTransport, Any], Awaitable[Any]]


def run(server: RawServer, scenario: Scenario, **settings: Any) -> Any:
    """Run `scenario(transport, leaf)`; afterwards there is no connection, no task and no complaint of the loop."""

    async def main() -> Any:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        transport = AsyncHttpTransport(limits=HttpLimits(), rng=random.Random(1), now=time.monotonic)
        leaf = transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(**settings), None, lambda _: b"")
        try:
            return await scenario(transport, leaf)
        finally:
            await transport.aclose()
            await asyncio.sleep(0)
            gc.collect()
            assert complaints == []
            assert len(asyncio.all_tasks()) == 1

    return asyncio.run(main())


def statistics(transport: AsyncHttpTransport) -> Any:
    (only,) = transport.statistics().values()
    return only


def test_callers_wait_for_a_connection_in_turn() -> None:
    """A pool of one serves ten callers one after the other over one connection."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        replies = await asyncio.gather(*(leaf(call()) for _ in range(10)))
        assert [reply.body for reply in replies] == [b"ok"] * 10
        now = statistics(transport)
        assert (now.connects_total, now.open, now.idle, now.waiting) == (1, 1, 1, 0)

    with RawServer(answering(OK)) as server:
        run(server, scenario, max_connections=1)


def test_a_transport_whose_loop_is_closed_is_discarded() -> None:
    """discard(): every socket is closed, in silence; a second event loop uses a transport of its own."""

    async def one(transport: AsyncHttpTransport) -> None:
        leaf = transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(), None, lambda _: b"")
        assert (await leaf(call())).body == b"ok"
        kept.append(await leaf(call(b"/streamed", streaming=True)))

    with quiet_descriptors(), RawServer(serve_begun) as server:
        for _ in range(3):
            kept: list[Any] = []
            transport = AsyncHttpTransport(limits=HttpLimits(), rng=random.Random(1), now=time.monotonic)
            asyncio.run(one(transport))
            transport.discard()
            transport.discard()
            kept.clear()
            gc.collect()
            assert transport.statistics() == {} or statistics(transport).open == 0
        assert asyncio_http._ABANDONED == []


def serve_begun(peer: Peer) -> None:
    while (request := peer.request()) is not None:
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1" if b"/streamed" in request else OK)


def test_an_address_that_left_is_forgotten_with_its_last_connection() -> None:
    """retire(): idle connections are closed at once, a busy one ends its call first; then nothing is left of it."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        reply = await leaf(call(b"/streamed", streaming=True))
        await leaf(call())
        transport.retire(())
        await asyncio.sleep(0)
        assert statistics(transport).open == 1
        await reply.stream.aclose()
        await asyncio.sleep(0)
        assert transport.statistics() == {}
        assert transport._pools == {}

    with RawServer(serve_begun) as server:
        run(server, scenario)


def test_a_cancelled_connect_is_no_failure() -> None:
    """Who gives up while connecting says nothing about the endpoint; a refused connect does."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        connecting = asyncio.create_task(leaf(call()))
        await asyncio.sleep(0)
        assert statistics(transport).connecting == 1
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        now = statistics(transport)
        assert (now.connecting, now.open, now.connect_failures_total) == (0, 0, 0)
        server.__exit__()
        with pytest.raises(TransportError, match="cannot connect"):
            await leaf(call())
        assert statistics(transport).connect_failures_total == 1

    server = RawServer(answering(OK)).__enter__()
    run(server, scenario)


def test_a_full_queue_is_rejected_and_a_long_wait_ends() -> None:
    """max_pending callers wait, one more is Rejected; a wait ends by phases.pool or the deadline: pool, not sent."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        busy = asyncio.create_task(leaf(call()))
        await asyncio.sleep(0.02)
        limits = PhaseTimeouts(None, None, None, 0.05)
        waiting = [
            asyncio.create_task(leaf(call(phases=limits))),
            asyncio.create_task(leaf(call(seconds=0.05, total=True))),
        ]
        await asyncio.sleep(0)
        with pytest.raises(Rejected) as rejected:
            await leaf(call())
        assert rejected.value.reason == "limit"
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert [(type(e), e.phase, e.sent, e.total) for e in ends] == [
            (DeadlineExceeded, "pool", False, False),
            (DeadlineExceeded, "pool", False, True),
        ]
        assert statistics(transport).waiting == 0
        go.set()
        assert (await busy).body == b"ok"
        assert (await leaf(call())).body == b"ok"

    go = threading.Event()

    def serve(peer: Peer) -> None:
        while peer.request() is not None:
            go.wait(5)
            peer.send(OK)

    with RawServer(serve) as server:
        run(server, scenario, max_connections=1, max_pending=2)


def test_cold_calls_do_not_connect_all_at_once() -> None:
    """Fifty cold calls: never more than CONNECTING_MAX connects under way; all are answered."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        calls = [asyncio.create_task(leaf(call())) for _ in range(50)]
        peak = 0
        while not all(task.done() for task in calls):
            peak = max(peak, statistics(transport).connecting)
            await asyncio.sleep(0)
        assert [task.result().body for task in calls] == [b"ok"] * 50
        assert 0 < peak <= CONNECTING_MAX

    with RawServer(answering(OK)) as server:
        run(server, scenario, max_connections=50)


@pytest.mark.parametrize("state", ["cold", "warm", "full"])
def test_a_call_cancelled_at_any_step_leaves_nothing(state: str) -> None:
    """Cancelled after 0, 1, 2 … steps of the loop: no slot, no waiter, no connection that could mix up answers."""

    def serve(peer: Peer) -> None:
        while (request := peer.request()) is not None:
            number = request.split(b" ")[1][1:]
            peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(number), number))

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        for steps in range(40):
            if state == "cold":
                transport.retire([])
                await asyncio.sleep(0.005)
                transport.retire([])
                leaf = transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(), None, lambda _: b"")
            else:
                await leaf(call(b"/0"))
            others = [asyncio.create_task(leaf(call(b"/%d" % n))) for n in range(2 if state == "full" else 0)]
            task = asyncio.create_task(leaf(call(b"/999")))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            (end,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(end, asyncio.CancelledError) or end.body == b"999"
            assert [(await other).body for other in others] == [b"%d" % n for n in range(len(others))]
            assert (await leaf(call(b"/%d" % steps))).body == b"%d" % steps
            now = statistics(transport)
            assert (now.waiting, now.connecting) == (0, 0)
        await asyncio.sleep(0.01)
        assert statistics(transport).open == statistics(transport).idle

    with quiet_descriptors(), RawServer(serve) as server:
        run(server, scenario, **({"max_connections": 1} if state == "full" else {}))


def test_cancellation_storm() -> None:
    """F34: 40 callers over 5 connections, half cancelled at random, the server fast, slow, mute, resetting, chunked.

    Never more connections than the limit, never another's answer, and afterwards everything works and is counted right.
    """
    seed = 34
    print(f"seed {seed}")
    rng, chaos, outcomes = random.Random(seed), random.Random(seed + 1), Counter[str]()

    def serve(peer: Peer) -> None:
        while (request := peer.request()) is not None:
            number = request.split(b" ")[1][1:]
            kind = chaos.choice(["fast"] * 4 + ["slow", "mute", "reset", "chunked"]) if not calm.is_set() else "fast"
            if kind == "mute":
                continue
            if kind == "reset":
                peer.reset()
                return
            if kind == "slow":
                time.sleep(0.02)
            if kind == "chunked":
                peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for digit in number:
                    peer.send(b"1\r\n%c\r\n" % digit)
                peer.send(b"0\r\n\r\n")
            else:
                peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(number), number))

    calm = threading.Event()

    async def one(leaf: Any, number: int, patience: float | None) -> None:
        streaming = rng.random() < 0.3
        try:
            async with asyncio.timeout(patience):
                reply = await leaf(call(b"/%d" % number, seconds=0.05, streaming=streaming))
                body = reply.body
                if reply.stream is not None:
                    while piece := await reply.stream.read():
                        body += piece
        except TimeoutError:
            outcomes["cancelled"] += 1
        except MeshError as error:
            outcomes[error.kind] += 1
        else:
            assert body == b"%d" % number
            outcomes["answered"] += 1

    async def caller(transport: AsyncHttpTransport, leaf: Any, who: int) -> None:
        for turn in range(25):
            patience = rng.uniform(0.0005, 0.03) if rng.random() < 0.5 else None
            await one(leaf, who * 1000 + turn, patience)
            assert statistics(transport).open <= 5

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        await asyncio.gather(*(caller(transport, leaf, who) for who in range(40)))
        calm.set()
        await asyncio.sleep(0.05)
        for number in range(10):
            assert (await leaf(call(b"/%d" % number))).body == b"%d" % number
        now = statistics(transport)
        assert (now.waiting, now.connecting) == (0, 0)
        assert now.open == now.idle <= 5
        assert len(asyncio.all_tasks()) == 1

    before = descriptors()
    with RawServer(serve) as server:
        run(server, scenario, max_connections=5)
    assert descriptors() <= before
    print(dict(outcomes))
    assert all(outcomes[kind] for kind in ("answered", "cancelled", "deadline", "transport"))


def test_closing_ends_calls_in_flight() -> None:
    """aclose(): a busy call and a waiting one end with an error, at once."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        calls = [asyncio.create_task(leaf(call())) for _ in range(2)]
        await asyncio.sleep(0.02)
        await transport.aclose()
        busy, waiting = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(busy, TransportError)
        assert isinstance(waiting, RuntimeError)
        assert statistics(transport).open == 0

    with RawServer(mute) as server:
        run(server, scenario, max_connections=1)


def test_each_loop_has_its_own_transport() -> None:
    """Used on another loop it refuses before it touches a connection."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        async def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                await leaf(call())

        thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        busy = asyncio.create_task(leaf(call()))
        await asyncio.sleep(0.02)
        thread.start()
        thread.join()
        go.set()
        await busy

    go = threading.Event()

    def serve(peer: Peer) -> None:
        peer.request()
        go.wait(5)
        peer.send(OK)

    with RawServer(serve) as server:
        run(server, scenario)


def test_idle_connections_are_closed_without_another_call() -> None:
    """One timer per pool closes what has been idle for too long."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        await leaf(call())
        assert statistics(transport).open == 1
        for _ in range(200):
            if not statistics(transport).open:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still open")

    with RawServer(answering(OK)) as server:
        run(server, scenario, idle_timeout_s=0.03)


def test_one_timer_per_connection() -> None:
    """A hundred calls with a deadline arm one timer, not a hundred: an armed earlier one is left."""

    async def scenario(transport: AsyncHttpTransport, leaf: Any) -> None:
        loop, armed = asyncio.get_running_loop(), []
        real = loop.call_later
        await leaf(call())
        loop.call_later = lambda *a, **k: armed.append(a) or real(*a, **k)  # type: ignore[method-assign]
        for _ in range(100):
            await leaf(call())
        assert len(armed) <= 1

    with RawServer(answering(OK)) as server:
        run(server, scenario)
