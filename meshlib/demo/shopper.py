"""The traffic: an open loop of idempotent calls to the storefront, and what became of each.

A call begins on schedule, whether or not the ones before it have ended (a closed loop would go easy on a slow mesh),
but at most `IN_FLIGHT_MAX` are under way: beyond that the schedule waits. The shopper is a member of the mesh like any
other; it serves a page too, so that it has `/metrics` and a certificate that can be looked at.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from meshlib import Mesh, MeshError

from .process import LOOK_S, DemoError, admin_in, listening_in
from .shop import Shop

IN_FLIGHT_MAX = 64
LATENCIES_MAX = 100_000
"""Latencies kept for the quantiles: the latest."""
INJECTED_MAX = 1000
"""Numbers of calls with an injected fault that are kept: the latest."""
FAILURES_SHOWN = 5
START_WITHIN_S = 15.0
STOP_WITHIN_S = 2.0


class Sample:
    """Some of the calls, from their beginning: `begun`, `ended`, how many failed by an injected fault, and the versions
    of inventory that answered.
    """

    def __init__(self) -> None:
        self.begun = self.ended = self.injected = 0
        self.versions: Counter[str] = Counter()


class Shopper:
    """`rate`: calls a second. `injected`: how many failed by a fault of mesh.yaml, which are not among the `failures`,
    and `injected_calls` which ones. Counts are read from any thread; they are written by the shopper's own.
    """

    name = service = "shopper"
    run = 1

    def __init__(self, shop: Shop, rate: float) -> None:
        self.rate, self.calls, self.ended, self.failures = rate, 0, 0, 0
        self.injected = 0
        self.injected_calls: deque[int] = deque(maxlen=INJECTED_MAX)
        self.trails: list[str] = []
        self.latencies_s: deque[float] = deque(maxlen=LATENCIES_MAX)
        self.address = self.admin = ""
        self._shop, self._sample, self._paused = shop, Sample(), True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="demo-shopper", daemon=True)

    def start(self) -> None:
        """Join the mesh, without calling yet. DemoError."""
        os.environ["MESHLIB_TOKEN_FILE"] = str(self._shop.token_file(self.name))
        os.environ["MESHLIB_INSTANCE"] = self.name
        self._thread.start()
        give_up = time.monotonic() + START_WITHIN_S
        log = self._shop.log(self.name)
        while not (self.address and self.admin):
            if self._error is not None or time.monotonic() > give_up:
                raise DemoError(f"the shopper did not start: {self._error or f'see {log}'}")
            time.sleep(LOOK_S)
            said = log.read_text() if log.exists() else ""
            self.address, self.admin = listening_in(said), admin_in(said)

    def stop(self) -> None:
        """End the calls and the thread."""
        if self._loop is not None and self._main is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._main.cancel)
        if self._thread.is_alive():
            self._thread.join(STOP_WITHIN_S)

    def resume(self) -> None:
        """Call."""
        self._paused = False

    def pause(self) -> None:
        """Begin no more calls, and wait until those under way have ended."""
        self._paused = True
        self._until(lambda: self.ended == self.calls)

    def wait_calls(self, count: int) -> None:
        """Until `count` more calls have ended."""
        goal = self.ended + count
        self._until(lambda: self.ended >= goal)

    def sample(self, count: int) -> Sample:
        """What became of the next `count` calls or a few more: all that began in a stretch of time, none left out."""
        sample = self._sample = Sample()
        self._until(lambda: sample.begun >= count)
        self._sample = Sample()
        self._until(lambda: sample.ended == sample.begun)
        return sample

    def quantile_ms(self, share: float) -> float:
        """A quantile of the latencies of calls that succeeded, in milliseconds; 0 before the first."""
        ordered = sorted(self.latencies_s)
        return round(ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1e3, 2) if ordered else 0.0

    def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            if self._error is not None or not self._thread.is_alive():
                raise DemoError(f"the shopper has stopped: {self._error!r}")
            time.sleep(LOOK_S)

    # The shopper's own thread

    def _run(self) -> None:
        try:
            with _logging_to(self._shop.log(self.name)):
                asyncio.run(self._shop_for_ever())
        except asyncio.CancelledError:
            pass
        except Exception as error:  # told to whoever waits for the shopper
            self._error = error

    async def _shop_for_ever(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        mesh = Mesh("shopper", self._shop.file)

        @mesh.get("/")
        async def counts() -> dict[str, int]:
            return {"calls": self.calls, "failures": self.failures}

        async with mesh, asyncio.TaskGroup() as tasks:
            tasks.create_task(mesh.serve(host="127.0.0.1"))
            await self._call_on_schedule(mesh.client("storefront"), tasks)

    async def _call_on_schedule(self, client: httpx.AsyncClient, tasks: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while True:
            if self._paused or self.calls - self.ended >= IN_FLIGHT_MAX:
                await asyncio.sleep(LOOK_S)
                due = time.monotonic()
                continue
            self.calls += 1
            tasks.create_task(self._call(client, self.calls, self._sample))
            due += 1 / self.rate
            await asyncio.sleep(due - time.monotonic())

    async def _call(self, client: httpx.AsyncClient, number: int, sample: Sample) -> None:
        sample.begun += 1
        began = time.monotonic()
        try:
            reply = await client.get(f"/pages/{number}")
            if reply.status_code == 200:
                self.latencies_s.append(time.monotonic() - began)
                sample.versions[reply.json()["order"]["item"]["version"]] += 1
            else:
                trail = reply.extensions.get("meshlib.trail")
                self._failed(number, f"{reply.status_code} {reply.text[:300]}", trail, sample)
        except (httpx.HTTPError, MeshError, ValueError, KeyError) as error:
            self._failed(number, repr(error), getattr(error, "trail", None), sample)
        finally:
            sample.ended += 1
            self.ended += 1

    def _failed(self, number: int, what: str, trail: object, sample: Sample) -> None:
        if "fault injected: abort" in str(trail):
            self.injected += 1
            self.injected_calls.append(number)
            sample.injected += 1
            return
        self.failures += 1
        if len(self.trails) < FAILURES_SHOWN:
            self.trails.append(f"call {number}, {time.strftime('%H:%M:%S')}: {what}\n{trail or ''}".rstrip())


@contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """The log of the mesh in this process, in a file like those of the others."""
    log, handler = logging.getLogger("meshlib"), logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = propagate
        handler.close()
