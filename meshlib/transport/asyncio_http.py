"""HTTP/1.1 on asyncio: a pool per endpoint and the leaf that sends one attempt through it.

A warm call is `list.pop`, one write, one future. Everything else is for the calls that find no idle connection: the
decisions are pool.py's, made and written down in one step; here they are waited for, within the attempt's limits, and
handed on when the caller is cancelled in the very step in which it was served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from ..call import FOREVER, Call, Reply
from ..endpoint import Endpoint
from ..errors import MeshError, TransportError
from ..runtime import Rng
from ..stack import Service
from . import phases, tcp
from .asyncio_connection import AsyncConnection
from .http1 import render_head
from .limits import HttpLimits
from .pool import Pool, PoolSettings, PoolStatistics
from .tls_stream import ClientTls, certificate_life

_RECEIVE = 65536
_CLOSING_STEPS = 100  # of the loop; an aborted connection is lost within one or two
_ABANDONED: list[object] = []  # a transport of the parent's loop must not be finalised in the child: it would close


class AsyncHttpTransport:
    """Every pool of one event loop. `now`: monotonic seconds. Use it on that loop only; close it with `aclose`."""

    def __init__(
        self, *, limits: HttpLimits, rng: Rng, now: Callable[[], float], loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._limits, self._rng, self._now, self._loop = limits, rng, now, loop
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._pools: dict[tuple[str, str], _EndpointPool] = {}
        self._closed = False

    def leaf(
        self,
        endpoint: Endpoint,
        settings: PoolSettings,
        tls: ClientTls | None,
        extra_lines: Callable[[Call], bytes],
        limits: HttpLimits | None = None,
    ) -> Service:
        """The service that sends each call to `endpoint` as one attempt.

        Pools are kept by address and expected peer: a leaf bound again gets the open connections, under the new
        settings. `extra_lines(call)` is called once per attempt, right before it is sent. `limits`: this leaf's own.
        """
        key = endpoint.address, "" if tls is None else tls.expected
        pool = self._pools.get(key)
        if pool is None:
            state: Pool[AsyncConnection] = Pool(endpoint.address, settings, self._rng)
            pool = self._pools[key] = _EndpointPool(self, endpoint, state)
        pool.state.retired, pool.state.settings, pool.tls = False, settings, tls
        return _leaf(pool, extra_lines, self._now, limits or self._limits)

    def retire(self, keep: Collection[str]) -> None:
        """Addresses not in `keep` have left the policy: close their idle connections now, busy ones when done."""
        for key, pool in self._in_use():
            if key[0] not in keep:
                pool.retire()

    async def aclose(self) -> None:
        """Close every connection; calls in flight end in TransportError. Returns when the sockets are closed."""
        self._closed = True
        for pool in self._pools.values():
            await pool.close()

    def abandon(self) -> None:
        """Forget everything after a fork: close the descriptors, send nothing, leave the parent's loop alone."""
        for pool in self._pools.values():
            for connection in pool.state.connections:
                _ABANDONED.append(connection)
                connection.abandon()
            pool.state.forget()
            pool.sweeping = None
        self._loop = None

    def discard(self) -> None:
        """The loop is closed, in this same process: close the sockets, from any thread. No TLS farewell is sent.

        Calls that still wait for the loop wait for ever; no other loop may use this transport.
        """
        self._closed = True
        for pool in self._pools.values():
            for connection in pool.state.connections:
                connection.discard()
            pool.state.forget()
            pool.sweeping = None

    def statistics(self) -> dict[str, PoolStatistics]:
        """The moment's numbers, by address."""
        found: dict[str, PoolStatistics] = {}
        for (address, _), pool in self._in_use():
            found[address] = found.get(address, PoolStatistics()) + pool.state.statistics()
        return found

    def _in_use(self) -> list[tuple[tuple[str, str], _EndpointPool]]:
        """Every pool; those that have left the policy, and whose last connection is gone, are forgotten here."""
        self._pools = {k: pool for k, pool in self._pools.items() if pool.state.open or not pool.state.retired}
        return list(self._pools.items())

    def running_loop(self) -> asyncio.AbstractEventLoop:
        """The loop this transport belongs to, which is the running one. Raises RuntimeError otherwise."""
        if self._closed:
            raise RuntimeError("this HTTP transport is closed")
        running = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = running
        elif self._loop is not running:
            raise RuntimeError("this HTTP transport belongs to another event loop; each loop has its own")
        return running

    def connection(self, pool: _EndpointPool, loop: asyncio.AbstractEventLoop) -> AsyncConnection:
        """A new connection of `pool`, not yet connected."""
        return AsyncConnection(pool.state, loop, self._buffer, self._now, pool.put)

    def now(self) -> float:
        """Monotonic seconds."""
        return self._now()


def _leaf(
    pool: _EndpointPool, extra_lines: Callable[[Call], bytes], now: Callable[[], float], limits: HttpLimits
) -> Service:
    idle, obtain, address = pool.state.idle, pool.obtain, pool.state.address

    async def leaf(call: Call) -> Reply:
        began = now()
        if call.attempt_deadline <= began:
            raise phases.expired(call, call.attempt_deadline, "pool", address, sent=False)
        try:
            connection = idle.pop()
        except IndexError:  # left before connecting, or it would be the context of every connect error
            connection = None
        if connection is not None and (connection.usable_until <= began):
            connection.abort()
            connection = None
        if connection is None:
            connection = await obtain(call)
        try:
            head = render_head(call, extra_lines(call))
        except BaseException:
            connection.abort()
            raise
        return await connection.exchange(call, head, limits)

    return leaf


class _EndpointPool:
    """The driver of one `Pool` on the loop: connects, waits, sweeps."""

    __slots__ = ("_closing", "_endpoint", "_transport", "state", "sweeping", "tls")

    def __init__(self, transport: AsyncHttpTransport, endpoint: Endpoint, state: Pool[AsyncConnection]) -> None:
        self._transport, self._endpoint, self.state = transport, endpoint, state
        self.tls: ClientTls | None = None
        self.sweeping: asyncio.TimerHandle | None = None

    async def obtain(self, call: Call) -> AsyncConnection:
        """A connection for `call`: idle, new, or handed over. Raises Rejected, and what ends waiting or connecting."""
        loop, now = self._transport.running_loop(), self._transport.now
        began = now()
        deadline = phases.limit(call, None if call.phases is None else call.phases.pool, began)
        while True:
            connection, stale = self.state.reuse(now())
            for old in stale:
                old.abort()
            if connection is not None:
                return connection
            if self.state.may_connect():
                return await self._connect(call)
            connection = await self._wait(call, loop, deadline)
            if connection is None:
                return await self._connect(call)
            if connection.usable_until:
                return connection

    async def _wait(self, call: Call, loop: asyncio.AbstractEventLoop, deadline: float) -> AsyncConnection | None:
        """What the pool gives: a connection, or None: connect."""
        waiter: asyncio.Future[AsyncConnection | None] = loop.create_future()
        self.state.wait(waiter)
        timer = None
        if deadline < FOREVER:
            timer = loop.call_later(max(0.0, deadline - self._transport.now()), _give_up, waiter)
        try:
            return await waiter
        except _TimeUp:
            self.state.withdraw(waiter)
            raise phases.expired(call, deadline, "pool", self._endpoint.address, sent=False) from None
        except BaseException:
            self.state.withdraw(waiter)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._hand_on(waiter.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _hand_on(self, given: AsyncConnection | None) -> None:
        """The caller was cancelled in the step in which it was served."""
        if given is None:
            self.state.connect_ended(None, 0.0, failed=False)
        elif given.usable_until:
            self.put(given)

    async def _connect(self, call: Call) -> AsyncConnection:
        """Open a connection on the slot and permit that are ours."""
        tls, now = self.tls, self._transport.now
        try:
            connection = await self._open(call, tls)
        except BaseException as error:
            self.state.connect_ended(None, now(), failed=isinstance(error, MeshError))
            raise
        self.state.connect_ended(connection, now(), certificate_life(tls))
        return connection

    async def _open(self, call: Call, tls: ClientTls | None) -> AsyncConnection:
        """TCP, then TLS and in it the peer's identity, within the connect limit."""
        transport, endpoint = self._transport, self._endpoint
        loop, now = transport.running_loop(), transport.now
        connection = transport.connection(self, loop)
        cap = self.state.settings.connect_timeout_s
        if call.phases is not None and call.phases.connect is not None:
            cap = min(cap, call.phases.connect)
        began = now()
        deadline = phases.limit(call, cap, began)
        try:
            async with asyncio.timeout(max(0.0, deadline - began)) as patience:
                await loop.create_connection(lambda: connection, endpoint.host, endpoint.port)
                if tls is not None:
                    await connection.secure(tls)
            transport.running_loop()
            if connection.closing:
                raise ConnectionResetError("closed by the peer at once")
        except OSError as error:
            connection.abort()
            if isinstance(error, TimeoutError) and patience.expired():
                raise phases.expired(call, deadline, "connect", endpoint.address, sent=False) from error
            raise tcp.connect_error(endpoint.address, error) from error
        except BaseException:
            connection.abort()
            raise
        return connection

    def put(self, connection: AsyncConnection) -> None:
        """Take a connection back after a complete exchange."""
        if not self.state.put(connection, self._transport.now()):
            connection.abort()
        elif self.sweeping is None:
            self._sweep()

    def _sweep(self) -> None:
        """Close what has been idle for too long, and look again when the next may have been."""
        now = self._transport.now()
        for old in self.state.expire(now):
            old.abort()
        self.sweeping = None
        if self.state.idle:
            wait = min(c.usable_until for c in self.state.idle) - now
            self.sweeping = asyncio.get_running_loop().call_later(wait, self._sweep)

    def retire(self) -> None:
        """Close idle connections now and busy ones when they come back."""
        self.state.retired = True
        for old in self.state.expire(self._transport.now()):
            old.abort()

    async def close(self) -> None:
        """Close every connection and wait until each is gone."""
        if self.sweeping is not None:
            self.sweeping.cancel()
        address = self._endpoint.address
        for connection in list(self.state.connections):
            connection.fail(
                TransportError(f"{address}: the HTTP transport was closed during the call", phase="read", cause="local")
            )
        for _ in range(_CLOSING_STEPS):
            if not self.state.connections:
                return
            await asyncio.sleep(0)


class _TimeUp(Exception):
    """A caller's time in the queue is over."""


def _give_up(waiter: asyncio.Future[AsyncConnection | None]) -> None:
    if not waiter.done():
        waiter.set_exception(_TimeUp())
