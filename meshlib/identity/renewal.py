"""When a leaf is renewed, and when again after a failure. Pure.

At half of its life ± 10 % of that half by chance, so that siblings do not come at once. After a failure: full jitter
under a ceiling that doubles from 1 s to 30 s, but never later than what leaves three tries before the leaf ends. A
clock that went back by more than a minute makes everything due: what was planned by it means nothing any more.

Source: SPIRE (half-life ± 10 %); AWS "Exponential Backoff And Jitter".
"""

from __future__ import annotations

from ..policy.backoff import backoff_s
from ..runtime import Rng
from .ca import BACKDATE_S

RENEW_AT, RENEW_JITTER = 0.5, 0.1
"""A leaf is renewed after half of its life, ± 10 % of that half by chance, so that siblings do not come at once."""

RETRY_BASE_S, RETRY_CAP_S = 1.0, 30.0
"""A failed renewal is tried again within this: 1 s after the first failure, 3 s after the second … 30 s at most."""

TRIES_LEFT = 3
"""So many tries fit in before the leaf ends, however long the wait was to be."""


def renewal_s(life_s: float, rng: Rng) -> float:
    """How long after its issue a leaf that lives `life_s` is renewed, in seconds."""
    return RENEW_AT * (1 + RENEW_JITTER * (2 * rng.random() - 1)) * life_s


class Schedule:
    """When something is to be done; at once, until it is told otherwise. Times are unix seconds."""

    def __init__(self) -> None:
        self._told_at = self._at = 0.0
        self._failures = 0

    def due(self, now: float) -> bool:
        """Is it time?"""
        return not self._told_at - BACKDATE_S <= now < self._at

    def next(self, now: float, after_s: float) -> None:
        """It was done; do it again `after_s` seconds from now."""
        self._told_at, self._at, self._failures = now, now + after_s, 0

    def within(self, now: float, after_s: float) -> None:
        """Do it no later than `after_s` seconds from now."""
        if now + after_s < self._at:
            self._told_at, self._at = now, now + after_s

    def failed(self, now: float, ends: float, rng: Rng) -> None:
        """It failed: try again after a wait, and more than once before `ends`, unless that has passed."""
        self._failures += 1
        wait_s = backoff_s(self._failures, RETRY_BASE_S, RETRY_CAP_S, rng)
        if now < ends:
            wait_s = min(wait_s, (ends - now) / (TRIES_LEFT + 1))
        self._told_at, self._at = now, now + wait_s
