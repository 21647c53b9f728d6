"""The asyncio runtime: deadlines by the running loop, spawned tasks that are kept, real locks."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from meshlib.call import FOREVER
from meshlib.runtime.event_loop import EventLoopRuntime


def test_before_gives_the_result_or_times_out():
    """Work that is done in time gives its result; work that never ends is cancelled at the deadline."""
    runtime = EventLoopRuntime()
    cancelled = []

    async def never():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def done():
        return 7

    async def scenario():
        assert await runtime.before(FOREVER, done()) == 7
        for deadline in (runtime.now() - 1, runtime.now() + 0.01):
            with pytest.raises(TimeoutError):
                await runtime.before(deadline, never())

    asyncio.run(scenario())
    assert cancelled == [True, True]


def test_a_cancellation_from_outside_is_not_a_timeout():
    """CancelledError goes up as it is."""
    runtime = EventLoopRuntime()

    async def scenario():
        task = asyncio.get_running_loop().create_task(runtime.before(FOREVER, asyncio.Event().wait()))
        await runtime.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_spawned_task_is_kept_until_it_is_done():
    """The loop keeps only a weak reference; the runtime keeps a strong one, and lets it go at the end."""
    runtime = EventLoopRuntime()
    seen = []

    async def work(event):
        await event.wait()
        seen.append("ran")

    async def scenario():
        event = asyncio.Event()
        handle = runtime.spawn(work(event))
        await runtime.sleep(0)
        del handle
        gc.collect()
        event.set()
        for _ in range(3):
            await asyncio.tasks.sleep(0)
        assert (seen, len(runtime._tasks)) == (["ran"], 0)

    asyncio.run(scenario())


def test_a_spawned_task_can_be_cancelled():
    """The handle has `cancel()`."""
    runtime = EventLoopRuntime()

    async def scenario():
        handle = runtime.spawn(runtime.sleep(3600))
        handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handle

    asyncio.run(scenario())


def test_its_lock_is_shared_with_threads():
    """One mesh serves many loops in many threads: the lock is a real one, and re-entrant."""
    lock = EventLoopRuntime().lock()
    entered = []
    with lock, lock:
        other = threading.Thread(target=lambda: entered.append(lock.acquire(blocking=False)))
        other.start()
        other.join(10)
    assert entered == [False]
