"""The one thread that touches the disk, and how many may wait for it.

A transaction takes milliseconds (it is flushed), and the event loop must not stand still for one. What waits is
bounded: beyond `WRITES_MAX` a caller is told to come back, which is better than an answer that nobody waits for.
Source: FAULTS F29; SQLite's single writer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

WRITES_MAX = 256
"""Requests that wait for the disk; one more is answered 503."""
RETRY_AFTER_S = 2.0
"""When a caller that was told so may come back, in seconds."""

T = TypeVar("T")


class Busy(Exception):
    """Too many wait for the disk already."""


class Writer:
    """Runs one piece of work after the other on a thread of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "meshlib-control-store")
        self._waiting = 0

    async def ask(self, work: Callable[..., T], *args: Any) -> T:
        """The result of `work(*args)`, for somebody's request. Busy."""
        if self._waiting >= WRITES_MAX:
            raise Busy
        return await self.run(work, *args)

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """The same for work of our own, of which there is one at a time of each kind: never Busy."""
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """End the thread once its work is done."""
        self._thread.shutdown(wait=True)
