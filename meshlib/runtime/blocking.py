"""The blocking runtime: the same coroutines on a plain thread, driven by one `send(None)`.

They never suspend: a leaf blocks inside its `await`, a sleep is `time.sleep`. A filter that really waits for an event
loop is caught on the spot, not in production. What was spawned and cancelled ends at its next sleep.
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from . import Lock, Rng

T = TypeVar("T")


def drive(work: Awaitable[T]) -> T:
    """Run a coroutine that never suspends and return its result. RuntimeError when it does suspend."""
    coroutine: Any = work
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a filter suspended on the blocking runtime: it may await only its service and the runtime")


class Spawned(threading.Thread):
    """Work beside its caller, in the caller's context. A daemon: it never keeps the process alive."""

    def __init__(self, work: Coroutine[Any, Any, None]) -> None:
        super().__init__(name="meshlib-spawned", daemon=True)
        self._work, self._context = work, contextvars.copy_context()
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """End it at its next sleep, or at once when it sleeps. A thread that is inside a leaf is left to finish."""
        self.cancelled.set()

    def run(self) -> None:
        try:
            self._context.run(drive, self._work)
        except Cancelled:
            return


class Cancelled(BaseException):
    """Raised in the sleep of cancelled work; a BaseException, as asyncio's is, so that no filter swallows it."""


class BlockingRuntime:
    """For the threads of a process."""

    name = "blocking"

    def __init__(self, rng: Rng | None = None) -> None:
        self.rng: Rng = rng or random.Random()
        self.now: Callable[[], float] = time.monotonic

    def lock(self) -> Lock:
        return threading.RLock()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        thread = threading.current_thread()
        if not isinstance(thread, Spawned):
            time.sleep(seconds)  # noqa: ASYNC251 - a thread is all there is to block
        elif thread.cancelled.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise Cancelled

    async def before(self, deadline: float, work: Awaitable[T]) -> T:
        if self.now() >= deadline:
            if isinstance(work, Coroutine):
                work.close()
            raise TimeoutError
        return await work

    def spawn(self, work: Coroutine[Any, Any, None]) -> Spawned:
        thread = Spawned(work)
        thread.start()
        return thread
