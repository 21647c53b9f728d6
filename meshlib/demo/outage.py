"""Two scenes: the config service is away, once as it was told to and once by SIGKILL, and calls go on.

What is promised: no call fails; every process shows on /metrics that it is on its own; a process that starts meanwhile
serves by the snapshot of its host; and once the service is back, everybody follows it again.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from .census import Member, total
from .fleet import Replica
from .joining import visit
from .stage import GIVE_UP_S, Scene, Stage, milliseconds, said

T = TypeVar("T")

NOTICED_S = 2.0
"""Promised: from the end of the config service until every process shows on /metrics that it is away."""
FOLLOWED_S = 5.0
"""Promised: from the moment it listens again until an edit is in force everywhere, and a new process is called."""
SLACK_S = 0.2
"""What a staleness may lack of the true one, in seconds: it is by another clock, and a moment older."""
_PROMISED = f"0 failed calls, shown in /metrics ≤ {NOTICED_S * 1e3:.0f} ms"


@dataclass(frozen=True, slots=True)
class Outage:
    """The config service ended with `code`; all had noticed after `noticed_s`; when it had been away for `away_s`, each
    showed a staleness of `stale_s` at least; an edit was in force `in_force_s` after it listened again, at `back`.
    """

    code: int | None
    noticed_s: float
    away_s: float
    stale_s: float
    back: float
    in_force_s: float

    @property
    def held(self) -> bool:
        """Was it noticed in time, shown as long as it was, and over in time?"""
        in_time = self.noticed_s <= NOTICED_S and self.in_force_s <= FOLLOWED_S
        return in_time and self.stale_s >= self.away_s - SLACK_S

    @property
    def told(self) -> str:
        """What was seen while it was away."""
        return f"{said(self.noticed_s, 'shown by all after', 'not shown by all')}, staleness ≥ {self.stale_s:.1f} s"

    @property
    def followed(self) -> str:
        """What was seen once it was back."""
        return f"back: {said(self.in_force_s, 'in force after', 'not in force everywhere')}"

    def figures(self) -> dict[str, Any]:
        """As plain data."""
        seen = {"noticed_ms": milliseconds(self.noticed_s), "away_ms": milliseconds(self.away_s)}
        return {**seen, "stale_ms": milliseconds(self.stale_s), "in_force_ms": milliseconds(self.in_force_s)}


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A process that was started while the config service was away, and its first answer, after so long."""

    replica: Replica
    answered_s: float


def stopped(stage: Stage) -> Scene:
    """The config service is stopped by SIGTERM, and started again."""
    failed = stage.shopper.failures
    outage, _ = _outage(stage, signal.SIGTERM, 60, lambda: None)
    failed = stage.shopper.failures - failed
    return Scene(
        "SIGTERM of the config service",
        f"exit 0, {_PROMISED}; back: an edit is in force ≤ {FOLLOWED_S * 1e3:.0f} ms",
        f"exit {'-' if outage.code is None else outage.code}, {failed} failed, {outage.told}; {outage.followed}",
        failed == 0 and outage.code == 0 and outage.held,
        {"failures": failed, "exit": outage.code, **outage.figures()},
    )


def killed(stage: Stage) -> Scene:
    """It is killed; while it is away a process starts that was not there before, and serves all the same."""
    failed = stage.shopper.failures
    outage, new = _outage(stage, signal.SIGKILL, 50, lambda: _start_alone(stage))
    called_s = stage.until(outage.back, lambda: stage.served(new.replica) > 1)  # once it was the visitor
    stage.shopper.wait_calls(stage.plan.after_calls)
    failed = stage.shopper.failures - failed
    name = new.replica.name
    answered = said(new.answered_s, f"{name} answered after", f"{name} did not answer")
    called = said(called_s, "called after", "not called")
    return Scene(
        "SIGKILL of the config service",
        f"{_PROMISED}, a new process serves by the snapshot; "
        f"back: an edit is in force and the new one is called ≤ {FOLLOWED_S * 1e3:.0f} ms",
        f"{failed} failed, {outage.told}, {answered}; {outage.followed}, {called}",
        failed == 0 and outage.held and new.answered_s < GIVE_UP_S and called_s <= FOLLOWED_S,
        {
            "failures": failed, **outage.figures(), "new": name, "answered_ms": milliseconds(new.answered_s),
            "called_ms": milliseconds(called_s),
        },
    )  # fmt: skip


def _outage(stage: Stage, number: signal.Signals, v2: int, meanwhile: Callable[[], T]) -> tuple[Outage, T]:
    """End the config service, do something, start it again, and then give v2 of inventory so many percent."""
    control, members = stage.control, stage.members
    stage.say(f"{number.name} of the config service (pid {control.pid})")
    code, ended = control.end(number, GIVE_UP_S), time.monotonic()
    noticed_s = stage.until_all(ended, lambda member: _gauge(stage, member, "meshlib_control_up") == 0)
    stage.shopper.wait_calls(stage.plan.down_calls)
    done = meanwhile()
    away_s = time.monotonic() - ended
    stale_s = min(_gauge(stage, member, "meshlib_control_staleness_seconds") for member in members)
    stage.say("starting the config service again")
    control.start()
    back = time.monotonic()
    return Outage(code, noticed_s, away_s, stale_s, back, stage.edit(v2)), done


def _start_alone(stage: Stage) -> Newcomer:
    """Start a process while nobody tells it anything, and let the visitor call it."""
    newcomer = stage.fleet.add("storefront")
    stage.say(f"starting {newcomer.name}, without the config service")
    began = time.monotonic()
    stage.fleet.start([newcomer])
    try:
        visit(stage, newcomer, "/pages/7")
    except OSError:
        return Newcomer(newcomer, float("inf"))
    return Newcomer(newcomer, time.monotonic() - began)


def _gauge(stage: Stage, member: Member, family: str) -> float:
    return total(stage.census.scrape(member), family)
