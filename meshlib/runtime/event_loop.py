"""The asyncio runtime: time from `time.monotonic` (uvloop caches `loop.time()`), waits by the running loop.

Locks are real: one mesh serves many loops in many threads, and what was learned is shared between them.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from . import Lock, Rng

T = TypeVar("T")


class EventLoopRuntime:
    """One per process is enough: it has no state but the generator of chance."""

    name = "asyncio"

    def __init__(self, rng: Rng | None = None) -> None:
        self.rng: Rng = rng or random.Random()
        self.now: Callable[[], float] = time.monotonic
        self._tasks: set[asyncio.Task[None]] = set()

    def lock(self) -> Lock:
        return threading.RLock()

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    async def before(self, deadline: float, work: Awaitable[T]) -> T:
        async with asyncio.timeout(max(0.0, deadline - self.now())):
            return await work

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
        return task
