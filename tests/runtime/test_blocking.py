"""The blocking runtime: coroutines that never suspend, driven on a plain thread."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from meshlib.runtime.blocking import BlockingRuntime, drive


def test_drive_gives_the_result_or_the_error():
    """A coroutine that never suspends is a function call."""

    async def inner(value):
        if value is None:
            raise KeyError("x")
        return value

    async def outer(value):
        return await inner(value)

    assert drive(outer(7)) == 7
    with pytest.raises(KeyError):
        drive(outer(None))


def test_drive_refuses_what_suspends():
    """A filter that waits for an event loop is caught on the spot, and its clean-up runs."""
    seen = []

    async def suspends():
        try:
            await asyncio.sleep(0)
        finally:
            seen.append("closed")

    with pytest.raises(RuntimeError, match="may await only its service and the runtime"):
        drive(suspends())
    assert seen == ["closed"]


def test_before_checks_the_deadline_around():
    """Passed: TimeoutError and the work is not begun. Not passed: the work's own result, however long it takes."""
    runtime = BlockingRuntime()
    begun = []

    async def work():
        begun.append(True)
        return 7

    assert drive(runtime.before(runtime.now() + 60, work())) == 7
    with pytest.raises(TimeoutError):
        drive(runtime.before(runtime.now(), work()))
    assert begun == [True]


def test_sleep_of_nothing_returns_at_once(monkeypatch):
    """Zero or less does not even yield the thread; more is slept on the thread."""
    slept = []
    monkeypatch.setattr("meshlib.runtime.blocking.time.sleep", slept.append)
    runtime = BlockingRuntime()
    for seconds in (0, -1.0, 0.25):
        drive(runtime.sleep(seconds))
    assert slept == [0.25]


def test_spawned_work_runs_beside_and_has_the_callers_context():
    """On a daemon thread, with the contextvars of its maker."""
    runtime, place = BlockingRuntime(), ContextVar("place", default="none")
    seen, go = [], threading.Event()

    async def work():
        go.wait(10)
        seen.append((place.get(), threading.current_thread().daemon))

    token = place.set("maker")
    handle = runtime.spawn(work())
    place.reset(token)
    assert seen == []
    go.set()
    handle.join(10)
    assert seen == [("maker", True)]


def test_spawned_work_can_be_cancelled_while_it_sleeps():
    """The handle has `cancel()`: a sleep of an hour ends at once, its clean-up runs, no error is reported."""
    runtime, sleeping = BlockingRuntime(), threading.Event()
    seen = []

    async def work():
        try:
            sleeping.set()
            await runtime.sleep(3600)
            seen.append("slept")
        finally:
            seen.append("cleaned up")

    handle = runtime.spawn(work())
    assert sleeping.wait(10)
    handle.cancel()
    handle.join(10)
    assert not handle.is_alive()
    assert seen == ["cleaned up"]


def test_its_lock_is_real_and_re_entrant():
    """Nobody else gets in; the holder does."""
    lock = BlockingRuntime().lock()
    entered = []
    with lock, lock:
        other = threading.Thread(target=lambda: entered.append(lock.acquire(blocking=False)))
        other.start()
        other.join(10)
    assert entered == [False]
