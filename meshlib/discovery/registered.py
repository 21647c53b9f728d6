"""The endpoints of one service as the config service reports them, over time. Pure.

Rules. *Stale beats empty*: a list that is empty does not take the last endpoints away, it marks them absent (they are
used while they answer). *A withdrawal is asked for twice*: one report that takes more than half of four or more
endpoints, or all of them, is believed only when a later report says it too (F03). *A store that lost its memory* (a new
epoch) learns of its instances again as they poll; until it has had the time, what was known before stays (F04).
Sources: FAULTS F03, F04, F36; Finagle `StabilizingAddr`; Envoy's matrix of discovery and health.
"""

from __future__ import annotations

from dataclasses import replace

from ..endpoint import Endpoint

GUARDED_FROM = 4
"""A service with so many endpoints or more may not lose more than `SHARE_MAX` of them on one report."""
SHARE_MAX = 0.5
EPOCH_GRACE_S = 75.0
"""How long endpoints that a new store does not know yet are kept: reconnects are spread over a minute (F04, F29)."""
FOREVER = float("inf")


class Registered:
    """`epoch` and list of the last report that was believed. Times are monotonic seconds."""

    __slots__ = ("_current", "_kept", "_suspected", "epoch")

    def __init__(self) -> None:
        self.epoch = ""
        self._current: tuple[Endpoint, ...] = ()
        self._kept: dict[str, tuple[Endpoint, float]] = {}
        self._suspected = -1

    def believes(self, epoch: str, reported: tuple[Endpoint, ...], report: int) -> bool:
        """May this report, number `report` of this process, be taken? False: ask again; once more the same will do."""
        if epoch != self.epoch or not self._withdraws(reported):
            self._suspected = -1
            return True
        if 0 <= self._suspected < report:
            return True
        self._suspected = report
        return False

    def update(self, epoch: str, reported: tuple[Endpoint, ...], now: float) -> None:
        """A report that is believed."""
        before, self._suspected = self.endpoints(now), -1
        addresses = {endpoint.address for endpoint in reported}
        if epoch != self.epoch:
            self._keep(before, now + EPOCH_GRACE_S)
        elif not reported:
            self._keep(tuple(replace(endpoint, absent=True) for endpoint in before), FOREVER)
        else:
            self._kept = {address: kept for address, kept in self._kept.items() if kept[1] < FOREVER}
        for address in addresses & self._kept.keys():
            del self._kept[address]
        self.epoch, self._current = epoch, reported

    def endpoints(self, now: float) -> tuple[Endpoint, ...]:
        """What may be called at `now`: the reported ones, then those that are kept for a while."""
        if not self._kept:
            return self._current
        left = {address: kept for address, kept in self._kept.items() if kept[1] > now}
        if not left and not self._current:  # stale beats empty
            left = {address: (replace(endpoint, absent=True), FOREVER) for address, (endpoint, _) in self._kept.items()}
        self._kept = left
        return (*self._current, *(endpoint for endpoint, _ in self._kept.values()))

    def next_at(self) -> float:
        """When `endpoints` will change by itself; infinity where it will not."""
        return min((until for _, until in self._kept.values()), default=FOREVER)

    def _keep(self, endpoints: tuple[Endpoint, ...], until: float) -> None:
        self._kept = {endpoint.address: (endpoint, until) for endpoint in endpoints}

    def _withdraws(self, reported: tuple[Endpoint, ...]) -> bool:
        before = {endpoint.address for endpoint in self._current}
        lost = len(before - {endpoint.address for endpoint in reported})
        return bool(before) and (not reported or (len(before) >= GUARDED_FROM and lost > SHARE_MAX * len(before)))
