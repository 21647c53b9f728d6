"""An open-loop load generator: calls begin on schedule, whether earlier ones have ended or not.

A closed loop would slow down with the system and hide exactly the failures that are looked for (coordinated omission);
so a call's time counts from when it was due.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import httpx

Send = Callable[[int], Awaitable[httpx.Response]]

LATE_S = 30.0
"""How long the calls still under way at the end may take; each has a deadline of its own below."""


@dataclass
class Outcome:
    """One call. Monotonic seconds; `error` None: it was answered, and well."""

    due: float
    took_s: float
    answer: str
    error: str | None
    attempts: int


@dataclass
class Figures:
    """What happened to the calls of one load."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [outcome.error for outcome in self.outcomes if outcome.error is not None]

    @property
    def answers(self) -> Counter[str]:
        """How many calls each body came back for."""
        return Counter(outcome.answer for outcome in self.outcomes if outcome.error is None)

    @property
    def retried(self) -> int:
        return sum(outcome.attempts > 1 for outcome in self.outcomes)

    def after(self, moment: float) -> Figures:
        """Of the calls that were due from `moment` on."""
        return Figures([outcome for outcome in self.outcomes if outcome.due >= moment])

    def quantile_s(self, share: float) -> float:
        took = sorted(outcome.took_s for outcome in self.outcomes)
        return took[min(len(took) - 1, int(share * len(took)))] if took else float("nan")

    def __str__(self) -> str:
        p50, p99 = self.quantile_s(0.5) * 1e3, self.quantile_s(0.99) * 1e3
        kinds = Counter(error.split(":")[0] for error in self.failures)
        failed = f"{len(self.failures)} failed {dict(kinds) if kinds else ''}".rstrip()
        return f"{len(self.outcomes)} calls, {failed}, {self.retried} retried, p50 {p50:.1f} ms, p99 {p99:.1f} ms"


class Load:
    """`async with load(send, rps) as running:` calls go on in the background; `running.figures` grows."""

    def __init__(self, send: Send, rps: float) -> None:
        self.figures, self._send, self._rps = Figures(), send, rps
        self._calls: set[asyncio.Task[None]] = set()

    async def _run(self) -> None:
        start, number = time.monotonic(), 0
        while True:
            due = start + number / self._rps
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            call = asyncio.create_task(self._call(number, due))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            number += 1

    async def _call(self, number: int, due: float) -> None:
        answer, error, attempts = "", None, 1
        try:
            response = await self._send(number)
            answer, attempts = response.text, len(response.extensions.get("meshlib.trail", ())) or 1
            if response.status_code >= 400:
                error = f"{response.status_code}: {answer[:200]}"
        except httpx.HTTPError as failure:
            trail = getattr(failure, "trail", None)
            error, attempts = f"{type(failure).__name__}: {failure}\n{trail}", len(trail or ()) or 1
        self.figures.outcomes.append(Outcome(due, time.monotonic() - due, answer, error, attempts))

    async def _end(self) -> None:
        async with asyncio.timeout(LATE_S):
            while self._calls:
                await asyncio.gather(*self._calls)


@contextlib.asynccontextmanager
async def load(send: Send, rps: float) -> AsyncIterator[Load]:
    """`rps` calls a second of `send(number)` while the block runs; afterwards every one of them has ended."""
    running = Load(send, rps)
    driver = asyncio.create_task(running._run())
    try:
        yield running
    finally:
        driver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await driver
        await running._end()
