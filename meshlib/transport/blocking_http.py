"""HTTP/1.1 on threads: a pool per endpoint, shared by the threads of a process, and the leaf; it never suspends.

A warm call is `list.pop` (atomic, no lock), `poll(0)`, one send, one recv. Every other move of a pool is made under
its lock, in one step, by pool.py; waiting and I/O are done outside it.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Collection

from ..call import Call, Reply
from ..endpoint import Endpoint
from ..errors import MeshError
from ..runtime import Rng
from ..stack import Service
from . import phases, tcp
from .blocking_connection import BlockingConnection
from .http1 import render_head
from .limits import HttpLimits
from .pool import Pool, PoolSettings, PoolStatistics
from .tls_stream import ClientTls, certificate_life

_SLICE_S = 0.1
"""How late a waiting thread may learn of a slot that was given up while somebody held the pool's lock."""


class BlockingHttpTransport:
    """Every pool of the threads of one process. `now`: monotonic seconds. Close it with `close`."""

    def __init__(self, *, limits: HttpLimits, rng: Rng, now: Callable[[], float]) -> None:
        self.limits, self.now, self._rng = limits, now, rng
        self._pools: dict[tuple[str, str], _EndpointPool] = {}
        self._lock = threading.Lock()
        self.closed = False

    def leaf(
        self,
        endpoint: Endpoint,
        settings: PoolSettings,
        tls: ClientTls | None,
        extra_lines: Callable[[Call], bytes],
        limits: HttpLimits | None = None,
    ) -> Service:
        """As `AsyncHttpTransport.leaf`; the coroutine is driven by one `send(None)`."""
        key = endpoint.address, "" if tls is None else tls.expected
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                state: Pool[BlockingConnection] = Pool(endpoint.address, settings, self._rng)
                pool = self._pools[key] = _EndpointPool(self, endpoint, state)
            pool.renew(settings, tls)
        return _leaf(pool, extra_lines, self.now, limits or self.limits)

    def retire(self, keep: Collection[str]) -> None:
        """Addresses not in `keep` have left the policy: close their idle connections now, busy ones when done."""
        with self._lock:
            for key, pool in self._in_use():
                if key[0] not in keep:
                    pool.retire()

    def close(self) -> None:
        """Close every idle connection and end the waits of calls in flight, which fail with TransportError."""
        self.closed = True
        with self._lock:
            for pool in self._pools.values():
                pool.close()

    def abandon(self) -> None:
        """Forget everything after a fork: close descriptors, send nothing. Locks may have been held: new ones."""
        self._lock = threading.Lock()
        for pool in self._pools.values():
            pool.lock = threading.Lock()
            for connection in pool.state.connections:
                connection.abandon()
            pool.given_up.clear()
            pool.state.forget()

    def statistics(self) -> dict[str, PoolStatistics]:
        """The moment's numbers, by address."""
        found: dict[str, PoolStatistics] = {}
        with self._lock:
            for (address, _), pool in self._in_use():
                with pool.lock:
                    found[address] = found.get(address, PoolStatistics()) + pool.state.statistics()
        return found

    def _in_use(self) -> list[tuple[tuple[str, str], _EndpointPool]]:
        """Every pool; those that have left the policy, and whose last connection is gone, are forgotten here."""
        for key, pool in list(self._pools.items()):
            with pool.lock:
                pool.collect()
                if pool.state.retired and not pool.state.open:
                    del self._pools[key]
        return list(self._pools.items())


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
        if connection is not None and (connection.usable_until <= began or not connection.quiet):
            connection.abort()
            connection = None
        if connection is None:
            connection = obtain(call)
        try:
            head = render_head(call, extra_lines(call))
        except BaseException:
            connection.abort()
            raise
        return connection.exchange(call, head, limits)

    return leaf


class _EndpointPool:
    """The driver of one `Pool` on threads: locks, connects, waits."""

    __slots__ = ("_endpoint", "_tls", "_transport", "given_up", "lock", "state")

    def __init__(self, transport: BlockingHttpTransport, endpoint: Endpoint, state: Pool[BlockingConnection]) -> None:
        self._transport, self._endpoint, self.state = transport, endpoint, state
        self._tls: ClientTls | None = None
        self.given_up: deque[BlockingConnection] = deque()  # closed; their slots are still taken
        self.lock = threading.Lock()

    def renew(self, settings: PoolSettings, tls: ClientTls | None) -> None:
        """Bound again, by a newer policy."""
        with self.lock:
            self.state.retired, self._tls = False, tls
            self.state.settings = settings

    def obtain(self, call: Call) -> BlockingConnection:
        """A connection for `call`: idle, new, or handed over. Raises Rejected, and what ends waiting or connecting."""
        now = self._transport.now
        deadline = phases.limit(call, None if call.phases is None else call.phases.pool, now())
        while True:
            waiter = _Waiter()
            with self.lock:
                self._check_open()
                self.collect()
                connection, stale = self.state.reuse(now())
                connect = connection is None and self.state.may_connect()
                if connection is None and not connect:
                    self.state.wait(waiter)
            for old in stale:
                old.abort()
            if connection is None:
                connection = None if connect else self._wait(waiter, call, deadline)
            if connection is None:
                return self._connect(call)
            if connection.usable_until and connection.quiet:
                return connection
            connection.abort()

    def collect(self) -> None:
        """Free the slots of connections that were given up. Under the lock."""
        while self.given_up:
            self.state.lost(self.given_up.popleft())

    def _check_open(self) -> None:
        if self._transport.closed:
            raise RuntimeError("this HTTP transport is closed")

    def _wait(self, waiter: _Waiter, call: Call, deadline: float) -> BlockingConnection | None:
        """What the pool gives: a connection, or None: connect."""
        try:
            while not waiter.wait(max(0.0, min(deadline - self._transport.now(), _SLICE_S))):
                with self.lock:
                    self.collect()
                    if waiter.done():  # just now, or in the moment between
                        break
                    if deadline <= self._transport.now():
                        self.state.withdraw(waiter)
                        raise phases.expired(call, deadline, "pool", self._endpoint.address, sent=False)
        except MeshError:
            raise
        except BaseException:
            self._hand_on(waiter)
            raise
        return waiter.result

    def _hand_on(self, waiter: _Waiter) -> None:
        """The caller was interrupted, perhaps just after it was served."""
        with self.lock:
            self.state.withdraw(waiter)
            if waiter.done() and waiter.result is None:
                self.state.connect_ended(None, 0.0, failed=False)
        if waiter.result is not None:
            self.put(waiter.result, True)

    def _connect(self, call: Call) -> BlockingConnection:
        """Open a connection on the slot and permit that are ours."""
        tls, now = self._tls, self._transport.now
        try:
            connection = self._open(call, tls)
        except BaseException as error:
            with self.lock:
                self.state.connect_ended(None, now(), failed=isinstance(error, MeshError))
            raise
        with self.lock:
            self.state.connect_ended(connection, now(), certificate_life(tls))
        return connection

    def _open(self, call: Call, tls: ClientTls | None) -> BlockingConnection:
        """TCP, then TLS and in it the peer's identity, within the connect limit (a name is looked up without one)."""
        transport, address = self._transport, self._endpoint.address
        cap = self.state.settings.connect_timeout_s
        if call.phases is not None and call.phases.connect is not None:
            cap = min(cap, call.phases.connect)
        deadline = phases.limit(call, cap, transport.now())
        connection = None
        try:
            self._check_open()
            sock = self._dial(call, deadline)
            connection = BlockingConnection(sock, address, transport.now, self.put)
            tcp.tune(sock.fileno())
            if tls is not None:
                connection.secure(tls, call, deadline)
            return connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not isinstance(error, OSError):
                raise
            if isinstance(error, TimeoutError) and transport.now() >= deadline:
                raise phases.expired(call, deadline, "connect", address, sent=False) from error
            raise tcp.connect_error(address, error) from error

    def _dial(self, call: Call, deadline: float) -> socket.socket:
        """The first address of the host that answers, all within `deadline`."""
        failure: OSError | None = None
        for family, kind, protocol, _, where in socket.getaddrinfo(
            self._endpoint.host, self._endpoint.port, type=socket.SOCK_STREAM
        ):
            left = min(deadline - self._transport.now(), phases.LONGEST_S)
            if left <= 0:
                raise phases.expired(call, deadline, "connect", self._endpoint.address, sent=False)
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(left)
                sock.connect(where)
            except BaseException as error:
                sock.close()
                if not isinstance(error, OSError):
                    raise
                failure = error
            else:
                return sock
        raise failure or OSError("the name has no address")

    def put(self, connection: BlockingConnection, reusable: bool) -> None:
        """Take a connection back after an exchange; one that may not be reused is closed and gives up its slot."""
        if not reusable or self._transport.closed:
            self._give_up(connection)
            return
        now = self._transport.now()
        with self.lock:
            kept = self.state.put(connection, now)
            oldest = self.state.idle[:1]
            stale = self.state.expire(now) if oldest and oldest[0].usable_until <= now else []
            for old in stale if kept else [*stale, connection]:
                old.close()
                self.state.lost(old)

    def _give_up(self, connection: BlockingConnection) -> None:
        """Close it. It never waits for the lock: the garbage collector comes here, even inside of it."""
        connection.close()
        self.given_up.append(connection)
        if self.lock.acquire(blocking=False):
            try:
                self.collect()
            finally:
                self.lock.release()

    def retire(self) -> None:
        """Close idle connections now and busy ones when they come back."""
        with self.lock:
            self.state.retired = True
            self.collect()
            for old in self.state.expire(self._transport.now()):
                old.close()
                self.state.lost(old)

    def close(self) -> None:
        """Close the idle ones; wake the threads that wait on the others, which close them."""
        self.retire()
        with self.lock:
            self.collect()
            for connection in list(self.state.connections):
                connection.interrupt()


class _Waiter:
    """The part of a future that the pool uses, for one thread. `set_result` is called under the pool's lock."""

    __slots__ = ("_done", "_served", "result")

    def __init__(self) -> None:
        self._served = threading.Lock()
        self._served.acquire()
        self._done = False
        self.result: BlockingConnection | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, result: BlockingConnection | None) -> None:
        self.result, self._done = result, True
        self._served.release()

    def wait(self, seconds: float) -> bool:
        """True: served."""
        return self._served.acquire(timeout=seconds)
