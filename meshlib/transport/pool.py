"""One endpoint's connections: which to use, open, hand over, close. Decisions only; the drivers do the I/O.

Rules of this file:

1.  The newest idle connection first (LIFO): the others grow old and are closed.
2.  A slot is taken in the step that decides to connect, and given back once: when the connect fails, or when the
    connection is lost. Whoever was promised a slot and gave up says so (`connect_ended`).
3.  At most CONNECTING_MAX connects at a time per endpoint: fifty cold handshakes on one loop would all time out.
    Who waits for a permit takes a returned connection if one comes first.
4.  Waiters are served in order; a waiter that is `done` has given up and is passed over.
5.  A connection lives at most `max_age_s` (± 10 %, so that a fleet does not reconnect in step), and never longer than
    the certificate it was opened with.

Shape: httpcore's `_assign_requests_to_connections`, a synchronous method that moves the state and says what to do.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from ..errors import Rejected
from ..runtime import Rng

CONNECTING_MAX = 8
"""Connects and handshakes under way at once, per endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Per endpoint, per event loop or process: `max_connections` ≥ 1, `max_pending` ≥ 0 callers waiting for one.

    Seconds: `idle_timeout_s` unused, `max_age_s` since it was opened, `connect_timeout_s` for TCP and TLS together.
    """

    max_connections: int = 32
    max_pending: int = 128
    idle_timeout_s: float = 60.0
    max_age_s: float = 1800.0
    connect_timeout_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """A moment of one address. `open` counts connections that are idle, busy or being opened (`connecting`)."""

    open: int = 0
    idle: int = 0
    waiting: int = 0
    connecting: int = 0
    connects_total: int = 0
    connect_failures_total: int = 0

    def __add__(self, other: PoolStatistics) -> PoolStatistics:
        return PoolStatistics(**{name: getattr(self, name) + getattr(other, name) for name in self.__slots__})


class Connection(Protocol):
    """What the pool knows of a connection. Times are monotonic seconds; `usable_until` 0.0 means dead."""

    expires: float
    usable_until: float
    pooled: bool


class Waiter(Protocol):
    """The part of a future that the pool uses; None promises a slot and a permit to connect."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...


C = TypeVar("C", bound=Connection)


class Pool(Generic[C]):
    """The state of one endpoint's pool. Not thread-safe: a threaded driver holds its lock around every method.

    `idle` alone may be popped without it (`list.pop` is atomic): that is the whole way of a warm call. So it may change
    between any two steps here; only the atomic `append`, `pop` and `remove` decide whose a connection is.
    """

    __slots__ = (
        "_rng", "_settings", "address", "connect_failures_total", "connecting", "connections", "connects_total", "idle",
        "open", "retired", "waiters",
    )  # fmt: skip

    def __init__(self, address: str, settings: PoolSettings, rng: Rng) -> None:
        self.address, self._settings, self._rng = address, settings, rng
        self.idle: list[C] = []
        self.waiters: deque[Waiter] = deque()
        self.connections: set[C] = set()
        self.open = self.connecting = self.connects_total = self.connect_failures_total = 0
        self.retired = False

    @property
    def settings(self) -> PoolSettings:
        """The settings in force."""
        return self._settings

    @settings.setter
    def settings(self, settings: PoolSettings) -> None:
        self._settings = settings
        self._grant()

    def reuse(self, now: float) -> tuple[C | None, list[C]]:
        """The newest idle connection that may be used, and the stale ones found before it, to be closed."""
        stale: list[C] = []
        while True:
            try:
                connection = self.idle.pop()
            except IndexError:
                return None, stale
            if connection.usable_until > now:
                return connection, stale
            stale.append(connection)

    def may_connect(self) -> bool:
        """True: a slot and a permit are the caller's; it connects now. False: it must wait."""
        if self.open >= self._settings.max_connections or self.connecting >= CONNECTING_MAX:
            return False
        self.open += 1
        self.connecting += 1
        return True

    def wait(self, waiter: Waiter) -> None:
        """Join the queue. The waiter's result will be a connection, or None: connect now. Raises Rejected when full."""
        if len(self.waiters) >= self._settings.max_pending:
            raise Rejected(
                "limit",
                f"{self.address}: {self.open} connections are in use (max_connections "
                f"{self._settings.max_connections}) and {len(self.waiters)} callers wait (max_pending)",
            )
        self.waiters.append(waiter)

    def withdraw(self, waiter: Waiter) -> None:
        """Leave the queue, if still in it."""
        try:
            self.waiters.remove(waiter)
        except ValueError:
            pass

    def connect_ended(
        self, connection: C | None, now: float, lifetime: float = float("inf"), *, failed: bool = True
    ) -> None:
        """A connect succeeded, or not (None). `lifetime`: seconds for which our certificate is still valid.

        `failed`: without a connection, because connecting failed; False: because the caller gave up.
        """
        self.connecting -= 1
        if connection is None:
            self.open -= 1
            self.connect_failures_total += failed
        else:
            self.connects_total += 1
            age = self._settings.max_age_s * (0.9 + 0.2 * self._rng.random())
            connection.expires = connection.usable_until = now + min(age, lifetime)
            connection.pooled = True
            self.connections.add(connection)
        self._grant()

    def put(self, connection: C, now: float) -> bool:
        """Take a connection back: to the first waiter, else to the idle ones. False: it has to be closed."""
        if self.retired or connection.expires <= now or self.open > self._settings.max_connections:
            return False
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        until = now + self._settings.idle_timeout_s
        connection.usable_until = until if until < connection.expires else connection.expires
        self.idle.append(connection)
        return True

    def lost(self, connection: C) -> None:
        """The connection has ended. Idempotent; the one place that gives an open connection's slot back."""
        connection.usable_until = 0.0
        if not connection.pooled:
            return
        connection.pooled = False
        self.open -= 1
        self.connections.discard(connection)
        self._take(connection)
        self._grant()

    def expire(self, now: float) -> list[C]:
        """Idle connections that may not be used any more, to be closed; they leave the pool now."""
        old = [c for c in self.idle[:] if self.retired or c.usable_until <= now]
        return [c for c in old if self._take(c)]

    def forget(self) -> None:
        """Drop everything without closing: after a fork it belongs to the parent."""
        self.idle.clear()
        self.waiters.clear()
        self.connections.clear()
        self.open = self.connecting = 0

    def statistics(self) -> PoolStatistics:
        """The moment's numbers."""
        return PoolStatistics(
            open=self.open,
            idle=len(self.idle),
            waiting=len(self.waiters),
            connecting=self.connecting,
            connects_total=self.connects_total,
            connect_failures_total=self.connect_failures_total,
        )

    def _take(self, connection: C) -> bool:
        """Remove it from the idle ones. False: it is not there, or a caller took it a moment ago."""
        try:
            self.idle.remove(connection)
        except ValueError:
            return False
        return True

    def _grant(self) -> None:
        """Something became free: let waiters connect, oldest first."""
        while self.waiters and self.open < self._settings.max_connections and self.connecting < CONNECTING_MAX:
            waiter = self.waiters.popleft()
            if not waiter.done():
                self.open += 1
                self.connecting += 1
                waiter.set_result(None)
