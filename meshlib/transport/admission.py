"""Is a request let in? Three layers of the server stack: drain, deadline, concurrency.

A request that is refused here was not begun: the application never saw it, the caller may ask elsewhere.
Draining refuses nothing: whoever still connects is served until the grace is over (Envoy, Linkerd). Work whose caller
has stopped waiting is not begun (Google SRE "load shedding", Finagle `DeadlineFilter`). Concurrency has no queue: a
queue only hides that the server is too slow.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from ..call import FOREVER, Call, Reply
from ..errors import MeshError, Rejected
from ..stack import Layer, Service

RETRY_AFTER_S = 1.0
"""What a caller that was shed is told: overload is a matter of seconds."""


class InFlight:
    """How many requests are being served. `closed`: the grace is over, nothing is begun any more. Thread-safe."""

    __slots__ = ("_lock", "closed", "count")

    def __init__(self) -> None:
        self.count, self.closed, self._lock = 0, False, threading.Lock()

    def enter(self) -> None:
        """One more."""
        with self._lock:
            self.count += 1

    def leave(self, _error: MeshError | None = None) -> None:
        """One less; the response's body has ended."""
        with self._lock:
            self.count -= 1


class Drain:
    """Counts what is in flight; refuses only when the grace of a shutdown is over."""

    __slots__ = ("in_flight",)

    def __init__(self, in_flight: InFlight) -> None:
        self.in_flight = in_flight

    async def __call__(self, call: Call, service: Service) -> Reply:
        if self.in_flight.closed:
            raise Rejected("shed", f"{call.service!r} is shutting down", retry_after_s=RETRY_AFTER_S)
        self.in_flight.enter()
        return await _until_end(call, service, self.in_flight.leave)


class Deadline:
    """Refuses, unstarted, a request whose caller's deadline has passed; then it is `call.deadline`."""

    __slots__ = ("now",)

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now

    async def __call__(self, call: Call, service: Service) -> Reply:
        served = call.served
        if served is not None and served.deadline < FOREVER:
            if self.now() >= served.deadline:
                raise Rejected("deadline", f"the caller's deadline had passed before {call.service!r} began")
            call.deadline = served.deadline
        return await service(call)


class Concurrency:
    """At most `max_concurrency` ≥ 1 requests at once, without a queue; one more is shed."""

    __slots__ = ("_lock", "busy", "max_concurrency")

    def __init__(self, max_concurrency: int) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency must be 1 or more, got {max_concurrency!r}")
        self.max_concurrency, self.busy, self._lock = max_concurrency, 0, threading.Lock()

    async def __call__(self, call: Call, service: Service) -> Reply:
        self.enter(call.service)
        return await _until_end(call, service, self.leave)

    def enter(self, name: str) -> None:
        """Take a place, or Rejected: shed. `name` is what is too busy."""
        with self._lock:
            if self.busy >= self.max_concurrency:
                raise Rejected(
                    "shed", f"{name!r} serves {self.busy} requests at once already", retry_after_s=RETRY_AFTER_S
                )
            self.busy += 1

    def leave(self, _error: MeshError | None = None) -> None:
        """Give the place back."""
        with self._lock:
            self.busy -= 1


class Admission(Protocol):
    """What these layers read of a server stack's context. `max_concurrency` None: no limit, the layer is absent."""

    now: Callable[[], float]
    in_flight: InFlight
    max_concurrency: int | None


async def _until_end(call: Call, service: Service, leave: Callable[[MeshError | None], None]) -> Reply:
    """Run the service; `leave` once, when it has failed or the reply's body has ended."""
    try:
        reply = await service(call)
    except BaseException:
        leave(None)
        raise
    reply.at_end(leave)
    return reply


def _concurrency(context: Admission) -> Concurrency | None:
    return None if context.max_concurrency is None else Concurrency(context.max_concurrency)


DRAIN = Layer(
    "drain",
    lambda context: Drain(context.in_flight),
    "outermost: a shutdown waits for everything that was let in, also for what a layer further in refuses",
)
DEADLINE = Layer(
    "deadline",
    lambda context: Deadline(context.now),
    "inside identity, which decides whether the caller's deadline is believed; outside concurrency, so that expired "
    "work never takes a place",
)
CONCURRENCY = Layer(
    "concurrency",
    _concurrency,
    "innermost, next to the application: only work that really begins takes a place",
)
