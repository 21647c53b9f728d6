"""F32: a process forks while its transports are warm. No answer goes to another, and the parent does not notice."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from raw_server import Peer, RawServer, call

from meshlib.endpoint import Endpoint
from meshlib.runtime.blocking import drive
from meshlib.transport.asyncio_http import AsyncHttpTransport
from meshlib.transport.blocking_http import BlockingHttpTransport
from meshlib.transport.limits import HttpLimits
from meshlib.transport.pool import PoolSettings

CHILDREN, CALLS = 3, 100
OPTIONS: Any = {"limits": HttpLimits(), "rng": random.Random(1), "now": time.monotonic}


def echo(peer: Peer) -> None:
    while (request := peer.request()) is not None:
        number = request.split(b" ")[1][1:]
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(number), number))


def forked(work: Callable[[int], None]) -> list[int]:
    """Run `work(n)` in forked children, at the same time; their process ids. Each must exit 0."""
    pids = []
    for number in range(CHILDREN):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(number)
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(status)
        pids.append(pid)
    return pids


def joined(pids: list[int]) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * CHILDREN


@pytest.mark.process
def test_blocking_transport() -> None:
    """Children abandon and go on with the same transport and leaf; the parent goes on with its old connection."""
    with RawServer(echo) as server:
        transport = BlockingHttpTransport(**OPTIONS)
        leaf = transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(), None, lambda _: b"")

        def ask(base: int) -> None:
            for number in range(base, base + CALLS):
                assert drive(leaf(call(b"/%d" % number))).body == b"%d" % number

        def child(number: int) -> None:
            transport.abandon()
            ask(10_000 * (number + 1))

        ask(0)
        pids = forked(child)
        ask(500)
        joined(pids)
        ask(900)
        (now,) = transport.statistics().values()
        assert (now.connects_total, now.idle) == (1, 1)
        transport.close()


@pytest.mark.process
def test_asyncio_transport() -> None:
    """The same on event loops: the child has a loop of its own and leaves the parent's selector alone."""
    with RawServer(echo) as server:

        async def ask(leaf: Any, base: int) -> None:
            for number in range(base, base + CALLS):
                assert (await leaf(call(b"/%d" % number))).body == b"%d" % number

        async def main() -> list[int]:
            transport = AsyncHttpTransport(**OPTIONS)
            leaf = transport.leaf(Endpoint("127.0.0.1", server.port), PoolSettings(), None, lambda _: b"")

            def child(number: int) -> None:
                asyncio.events._set_running_loop(None)  # what asyncio does for itself after a fork
                transport.abandon()

                async def work() -> None:
                    await ask(leaf, 10_000 * (number + 1))
                    await transport.aclose()

                asyncio.run(work())

            await asyncio.gather(*(leaf(call(b"/%d" % n)) for n in range(3)))
            before = transport.statistics()
            pids = forked(child)
            await ask(leaf, 500)
            await asyncio.to_thread(joined, pids)
            await ask(leaf, 900)
            assert transport.statistics() == before
            await transport.aclose()
            return pids

        assert len(asyncio.run(main())) == CHILDREN
