"""The only door to time, chance and concurrency.

Three runtimes drive one body of code: asyncio, blocking threads (the same coroutines, driven by one `send(None)`:
they never suspend), simulation (virtual clock, one seed). A filter awaits nothing but its service and what is here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Rng(Protocol):
    """The part of `random.Random` that decisions use."""

    def random(self) -> float:
        """A float in [0, 1)."""

    def getrandbits(self, k: int, /) -> int:
        """`k` random bits."""


class Lock(AbstractContextManager[Any], Protocol):
    """Mutual exclusion for a few lines without a wait. Real on threads and on loops; nothing in the simulation."""


class Runtime(Protocol):
    """Time, chance and concurrency. All times are monotonic seconds; all waits end."""

    name: str
    rng: Rng
    now: Callable[[], float]

    def lock(self) -> Lock:
        """A new lock. Re-entrant: a reply that the garbage collector ends is counted on whatever thread it ran on."""

    async def sleep(self, seconds: float) -> None:
        """Wait. Zero or less returns at once."""

    async def before(self, deadline: float, work: Awaitable[T]) -> T:
        """The result of `work`, or TimeoutError when `deadline` passes first; `work` is then cancelled.

        On the blocking runtime the deadline is kept by the leaf's socket timeouts: here it is only checked around.
        """

    def spawn(self, work: Coroutine[Any, Any, None]) -> Any:
        """Run `work` beside the caller; the handle has `cancel()`."""
