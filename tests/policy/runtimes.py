"""One body of a test on the three runtimes: `@on_every_runtime` and `run(body)`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from meshlib.runtime import Runtime
from meshlib.runtime.blocking import BlockingRuntime, Spawned, drive
from meshlib.runtime.event_loop import EventLoopRuntime
from meshlib.runtime.simulation import SimulationRuntime

Body = Callable[[Runtime], Awaitable[Any]]
SPAWNED_S_MAX = 5.0


class JoinedRuntime(BlockingRuntime):
    """A blocking runtime whose spawned threads can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[Spawned] = []

    def spawn(self, work: Any) -> Spawned:
        self.spawned.append(thread := super().spawn(work))
        return thread


def on_asyncio(body: Body) -> Any:
    async def whole() -> Any:
        runtime = EventLoopRuntime()
        result = await body(runtime)
        await asyncio.gather(*runtime._tasks)
        return result

    return asyncio.run(whole())


def on_blocking(body: Body) -> Any:
    runtime = JoinedRuntime()
    result = drive(body(runtime))
    for thread in runtime.spawned:
        thread.join(SPAWNED_S_MAX)
        assert not thread.is_alive()
    return result


def on_simulation(body: Body) -> Any:
    runtime = SimulationRuntime(7)

    async def whole() -> Any:
        result = await body(runtime)
        await runtime.sleep(3600.0)  # whatever was spawned ends
        return result

    return runtime.run(whole())


on_every_runtime = pytest.mark.parametrize("run", [on_asyncio, on_blocking, on_simulation])
