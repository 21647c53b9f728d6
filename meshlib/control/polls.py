"""Who is waiting for what: the processes that poll, one future each while they wait, and how they are woken.

    poll ──▶ behind? ── yes ──▶ answered at once
               │ no
               ▼
            waiting ── something of its closure changed · its time is over · a newer poll of it · drain · lost ──▶ ended

A waiting process costs one future and one timer, no task beside the one that its request has anyway; what it waits for
is the catalog's own tuple, shared by all who want the same. A change wakes thousands: they are woken `SLICE` at a time,
and between two slices the event loop does what else has come. Sources: Consul blocking queries; FAULTS F29.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any
from weakref import WeakValueDictionary, finalize

from ..runtime import Rng

PROCESSES_MAX = 20_000
"""Processes that poll; one more is refused until others have been silent for as long as a lease lasts."""
SERVICE_PROCESSES_MAX = 10_000
"""The same for processes of one service: none may take the place of all others."""
WANTED_MAX = 1_000_000
"""Names of services in all different lists of what processes want; a poll with another list beyond is refused."""
SERVICE_WANTED_MAX = WANTED_MAX // 20
"""The same for what the processes of one service want: none may take the place of all others."""
INDEXED_MAX = 1024
"""Resources of a closure by which those who wait are found; who waits for more is looked at with every change."""
SLICE = 32
"""Waiting processes woken in one step of the event loop: about 5 ms of work."""
JITTER = 1 / 16
"""A poll that is not answered earlier is held for up to this share longer, by chance (Consul)."""
RECONNECTS_PER_S = 150
"""Handshakes a second that a service is asked to bear when all processes come back; it can do about 400 on one core."""
RECONNECT_S_MIN, RECONNECT_S_MAX = 1.0, 60.0
"""Over how many seconds processes are asked to spread their return, at least and at most."""


_EVERYBODYS = frozenset(("trust", "defaults"))


class Ended(Enum):
    """Why a wait is over."""

    NEWS = "something it wants has changed"
    QUIET = "nothing has"
    LOST = "its connection is gone"


class PollsFull(Exception):
    """There is no room for one more process, of this service or of all, or for what it wants."""


class Interest:
    """What some processes have in common: their service, what they call, and who of them is waiting.

    `resources`: the closure that those who wait began with. When one of it changes they are all woken, so they began
    with the same. `among`: where it is found by its resources while somebody waits.
    """

    __slots__ = ("__weakref__", "among", "own", "resources", "waiting", "want")

    def __init__(self, own: str, want: tuple[str, ...], among: _Waiting) -> None:
        self.own, self.want, self.among = own, want, among
        self.resources: tuple[str, ...] = ()
        self.waiting: set[Process] = set()

    def begin(self, process: Process) -> None:
        """One more waits."""
        if self.waiting and self.resources is not process.resources:
            self.among.remove(self)
        if not self.waiting or self.resources is not process.resources:
            self.resources = process.resources
            self.among.add(self)
        self.waiting.add(process)

    def end(self, process: Process) -> None:
        """It waits no longer."""
        self.waiting.discard(process)
        if not self.waiting:
            self.among.remove(self)


class _Waiting:
    """The interests that somebody waits for, by resource. Everybody follows `trust` and `defaults`."""

    def __init__(self) -> None:
        self._every: set[Interest] = set()
        self._large: set[Interest] = set()
        self._by_resource: dict[str, set[Interest]] = {}

    def add(self, interest: Interest) -> None:
        self._every.add(interest)
        if len(interest.resources) > INDEXED_MAX:
            self._large.add(interest)
            return
        for resource in interest.resources:
            if resource not in _EVERYBODYS:
                self._by_resource.setdefault(resource, set()).add(interest)

    def remove(self, interest: Interest) -> None:
        self._every.discard(interest)
        if interest in self._large:
            self._large.discard(interest)
            return
        for resource in interest.resources:
            if found := self._by_resource.get(resource):
                found.discard(interest)
                if not found:
                    del self._by_resource[resource]

    def of(self, changed: set[str]) -> set[Interest]:
        """Those that follow one of these resources."""
        if not changed.isdisjoint(_EVERYBODYS):
            return set(self._every)
        found = {interest for interest in self._large if not changed.isdisjoint(interest.resources)}
        for resource in changed:
            found |= self._by_resource.get(resource, set())
        return found


class Process:
    """One process that polls; a newer poll of it is another object.

    `resources`: its closure when the poll began. `since`: the highest version among them, if it had all of them; 0: it
    was `behind` in some, and so was answered at once. `trust`: the version of `trust` that it has, 0 for none of ours.
    `registered`: the registry has its instance. `ended_at`: monotonic seconds, inf while the poll is open.
    """

    __slots__ = (
        "behind", "ended_at", "future", "info", "instance", "interest", "load", "registered", "rejected", "resources",
        "serial", "since", "timer", "trust",
    )  # fmt: skip

    def __init__(self, instance: str, serial: int, interest: Interest, resources: tuple[str, ...]) -> None:
        self.instance, self.serial, self.interest, self.resources = instance, serial, interest, resources
        self.since = self.trust = 0
        self.registered = False
        self.behind: tuple[str, ...] = ()
        self.rejected: Mapping[str, Any] = {}
        self.load: Mapping[str, float] = {}
        self.info: Mapping[str, str] = {}
        self.ended_at = float("inf")
        self.future: asyncio.Future[Ended] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def service(self) -> str:
        """Its own, canonical."""
        return self.interest.own

    def end(self, why: Ended) -> None:
        """Let its poll go on, if it is waiting."""
        future, self.future = self.future, None
        if future is None:
            return
        self.interest.end(self)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not future.done():
            future.set_result(why)

    def lost(self) -> None:
        """Its connection is gone."""
        self.end(Ended.LOST)


class Polls:
    """All processes that poll. Confined to the event loop `loop`, by whose clock all times are."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Rng, silence_s: float) -> None:
        self._loop, self._rng, self._silence_s = loop, rng, silence_s
        self._processes: dict[tuple[str, str], Process] = {}
        self._silent: dict[tuple[str, str], Process] = {}
        self._of_service: Counter[str] = Counter()
        self._interests: WeakValueDictionary[tuple[str, tuple[str, ...]], Interest] = WeakValueDictionary()
        self._wanted: Counter[str] = Counter()
        self._wanted_in_all = 0
        self._waiting = _Waiting()
        self._woken: deque[Process] = deque()
        self._waking = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._processes)

    def __iter__(self) -> Iterator[Process]:
        """A copy: every process that polls, or has ended its last poll less than `silence_s` seconds ago."""
        return iter(list(self._processes.values()))

    def find(self, service: str, instance: str) -> Process | None:
        """The last poll of this process."""
        return self._processes.get((service, instance))

    @property
    def reconnect_s(self) -> float:
        """Over how many seconds processes are to spread their return."""
        return min(RECONNECT_S_MAX, max(RECONNECT_S_MIN, round(len(self._processes) / RECONNECTS_PER_S, 1)))

    def interest(self, own: str, want: Iterable[str]) -> Interest:
        """The one object for this service and these. PollsFull."""
        key = (own, tuple(sorted(set(want))))
        found = self._interests.get(key)
        if found is None:
            names = len(key[1])
            if self._wanted_in_all + names > WANTED_MAX or self._wanted[own] + names > SERVICE_WANTED_MAX:
                raise PollsFull
            found = self._interests[key] = Interest(own, key[1], self._waiting)
            self._wanted[own] += names
            self._wanted_in_all += names
            finalize(found, self._nobody_wants, own, names)
        return found

    def _nobody_wants(self, own: str, names: int) -> None:
        self._wanted_in_all -= names
        self._wanted[own] -= names
        if not self._wanted[own]:
            del self._wanted[own]

    def begin(self, process: Process) -> None:
        """A poll of it begins: one that is still open is ended. PollsFull."""
        key = (process.service, process.instance)
        before = self._processes.get(key)
        if before is None:
            if len(self._processes) >= PROCESSES_MAX or self._of_service[process.service] >= SERVICE_PROCESSES_MAX:
                raise PollsFull
            self._of_service[process.service] += 1
        self._silent.pop(key, None)
        self._processes[key] = process
        if before is not None:
            before.end(Ended.QUIET)

    def wait(self, process: Process, seconds: float) -> asyncio.Future[Ended]:
        """What ends this poll: after `seconds`, and a little by chance, at the latest."""
        future: asyncio.Future[Ended] = self._loop.create_future()
        if self.closed:
            future.set_result(Ended.QUIET)
            return future
        delay_s = seconds * (1 + JITTER * self._rng.random())
        process.future, process.timer = future, self._loop.call_later(delay_s, process.end, Ended.QUIET)
        process.interest.begin(process)
        return future

    def finish(self, process: Process) -> None:
        """Its poll is over: answered, refused or lost."""
        process.end(Ended.LOST)
        process.ended_at = self._loop.time()
        key = (process.service, process.instance)
        if self._processes.get(key) is process:
            self._silent[key] = process

    def sweep(self) -> None:
        """Forget who has been silent for `silence_s` seconds."""
        before = self._loop.time() - self._silence_s
        while self._silent:
            key, process = next(iter(self._silent.items()))
            if process.ended_at > before:
                return
            del self._silent[key], self._processes[key]
            self._of_service[process.service] -= 1
            if not self._of_service[process.service]:
                del self._of_service[process.service]

    def wake(self, changed: set[str]) -> None:
        """These resources are newer: end the polls that wait for one of them, in slices."""
        for interest in self._waiting.of(changed):
            self._woken.extend(interest.waiting)
        self._wake_some()

    def end_all(self, serials: set[int]) -> None:
        """End the polls of these certificates, now."""
        for process in self:
            if process.serial in serials:
                process.end(Ended.QUIET)

    def close(self) -> None:
        """End every poll, now, and hold none any more."""
        self.closed = True
        self._woken.clear()
        for process in self:
            process.end(Ended.QUIET)

    def _wake_some(self) -> None:
        if self._waking:
            return
        for _ in range(min(SLICE, len(self._woken))):
            self._woken.popleft().end(Ended.NEWS)
        if self._woken:
            self._waking = True
            self._loop.call_soon(self._wake_more)

    def _wake_more(self) -> None:
        self._waking = False
        self._wake_some()
