"""The simulation runtime: a virtual clock and one seed. An hour takes milliseconds and ends the same way.

A scheduler of plain coroutines: whoever sleeps yields a wake-up time, the earliest runs next, ties in the order they
were made; nothing else decides. When everybody sleeps, time jumps (trio's autojump clock). More than `STEPS_MAX` steps
at one instant are a livelock and are reported as one. An error of a task that nobody awaited is raised by `run`.
"""

from __future__ import annotations

import contextvars
import heapq
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import nullcontext
from typing import Any, TypeVar

from ..call import FOREVER
from . import Lock, Rng

T = TypeVar("T")

STEPS_MAX = 1_000_000
"""Steps without any progress of the clock before the simulation gives up."""


class Cancelled(BaseException):
    """Thrown into a task that was cancelled; a BaseException, as asyncio's is, so that no filter swallows it."""


class Task:
    """One coroutine in the simulation. `await task` gives its result or raises its error."""

    __slots__ = (
        "_cancelling", "_context", "_coroutine", "_heard", "_runtime", "_waiters", "_wake", "done", "error", "result",
    )  # fmt: skip

    def __init__(self, runtime: SimulationRuntime, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._runtime, self._coroutine = runtime, coroutine
        self._context = contextvars.copy_context()
        self._waiters: list[tuple[Task, int]] = []
        self._wake = 0
        self._cancelling = self._heard = False
        self.done, self.result, self.error = False, None, None  # type: bool, Any, BaseException | None

    def cancel(self) -> None:
        """Throw Cancelled into it at its next step. A finished task is left alone."""
        if not self.done:
            self._cancelling = True
            self._runtime._ready(self)

    def __await__(self) -> Generator[Any, None, Any]:
        self._heard = True
        while not self.done:
            yield self
        if self.error is not None:
            raise self.error
        return self.result


class _Sleep:
    """Awaited: wake me at `at` (FOREVER: only when somebody does)."""

    __slots__ = ("at",)

    def __init__(self, at: float) -> None:
        self.at = at

    def __await__(self) -> Generator[_Sleep, None, None]:
        yield self


class SimulationRuntime:
    """Virtual time from 0.0 and chance from `seed`, which a failing test prints."""

    name = "simulation"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.rng: Rng = random.Random(seed)
        self._clock = 0.0
        self.now: Callable[[], float] = lambda: self._clock
        self._order = 0
        self._sleeping: list[tuple[float, int, Task, int]] = []
        self._runnable: deque[tuple[Task, int]] = deque()
        self._failed: list[Task] = []

    def lock(self) -> Lock:
        return nullcontext()

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            await _Sleep(self._clock + seconds)

    async def before(self, deadline: float, work: Awaitable[T]) -> T:
        async def result() -> T:
            return await work

        task = self.spawn(result())
        alarm = self.spawn(self._alarm(deadline, task))
        try:
            outcome: T = await task
        except Cancelled as cancelled:
            if alarm.done and cancelled is task.error:
                raise TimeoutError from None
            task.cancel()
            raise
        finally:
            alarm.cancel()
        return outcome

    async def _alarm(self, deadline: float, task: Task) -> None:
        await self.sleep(deadline - self._clock)
        task.cancel()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> Task:
        task = Task(self, work)
        self._ready(task)
        return task

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work`, and what it spawned beside it, until `work` is done; what is left goes on in the next `run`.

        RuntimeError when everybody waits for ever, or when time stands still.
        """
        main = self.spawn(work)
        main._heard = True
        steps = 0
        while not main.done:
            if self._runnable:
                task, wake = self._runnable.popleft()
            elif self._sleeping:
                at, _, task, wake = heapq.heappop(self._sleeping)
                if wake == task._wake and at > self._clock:
                    steps = 0
                    self._clock = at
            else:
                raise RuntimeError("simulation: every task waits and no one is left to wake it")
            if wake == task._wake and not task.done:
                steps += 1
                if steps > STEPS_MAX:
                    raise RuntimeError(f"simulation: {STEPS_MAX} steps at t={self._clock} without progress of time")
                self._step(task)
        unheard = [task for task in self._failed if not task._heard]
        self._failed.clear()
        for failed in (main, *unheard):
            if failed.error is not None:
                raise failed.error
        result: T = main.result
        return result

    def _ready(self, task: Task) -> None:
        task._wake += 1  # an older wake-up of this task is void
        self._runnable.append((task, task._wake))

    def _step(self, task: Task) -> None:
        try:
            if task._cancelling:
                task._cancelling = False
                waits_for = task._context.run(task._coroutine.throw, Cancelled())
            else:
                waits_for = task._context.run(task._coroutine.send, None)
        except StopIteration as stop:
            self._finish(task, stop.value, None)
        except (Exception, Cancelled) as error:
            self._finish(task, None, error)
        else:
            task._wake += 1
            if task._cancelling:  # by itself: it is told as soon as it waits
                self._ready(task)
            elif isinstance(waits_for, Task):
                waits_for._waiters.append((task, task._wake))
            elif not isinstance(waits_for, _Sleep):
                raise RuntimeError(f"simulation: {waits_for!r} is not something this runtime can wait for")
            elif waits_for.at < FOREVER:
                self._order += 1
                heapq.heappush(self._sleeping, (waits_for.at, self._order, task, task._wake))

    def _finish(self, task: Task, result: Any, error: BaseException | None) -> None:
        task.done, task.result, task.error = True, result, error
        if isinstance(error, Exception) and not task._heard:
            self._failed.append(task)
        for waiter, wake in task._waiters:
            if wake == waiter._wake:  # it may have been cancelled, and wait for something else by now
                self._ready(waiter)
        task._waiters.clear()
