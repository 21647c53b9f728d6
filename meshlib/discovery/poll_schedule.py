"""When to ask the config service again. Pure: time and chance are arguments.

    answered ──▶ at once, but at most RATE a second with a burst of BURST       (Consul: a watch loop needs a limit)
    failed   ──▶ after U(0, ceiling), ceiling = reconnect_s × 2ⁿ⁻¹ up to a cap   (full jitter, also at the cap)

`reconnect_s` is the service's own word: over how long it wants a lost herd to come back. A mesh of ten processes is
back within four seconds, one of ten thousand takes a minute; nobody waits longer than the larger of 30 s and that.
Sources: Consul blocking queries; AWS "Exponential Backoff And Jitter"; FAULTS F01, F04, F29.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..policy.token_bucket import TokenBucket

if TYPE_CHECKING:
    from ..runtime import Rng

RATE = 2.0
"""Polls a second that one process makes however often it is answered; further changes wait and come together."""
BURST = 2.0
"""Polls that may follow each other at once."""
RECONNECT_S = 1.0
"""Over how long the first reconnect is spread before the service has said otherwise, in seconds."""
CAP_S = 30.0
"""The longest wait between two tries, unless the service asks for more (F01)."""
CAP_FACTOR = 4.0
"""The cap is this many times `reconnect_s` where that is less: a small mesh need not wait for a large one's calm."""
DOUBLINGS_MAX = 16
"""Failures in a row beyond this make no wait longer: keeps the exponent bounded."""
WAIT_S = 30.0
"""How long a poll asks to be held, in seconds."""
ABANDON_S = 5.0
"""Beyond wait + wait / 16 a poll is given up after so long, and asked again (F02)."""


def poll_timeout_s(wait_s: float) -> float:
    """After how long a poll that asked to be held for `wait_s` seconds is given up."""
    return wait_s + wait_s / 16 + ABANDON_S


class PollSchedule:
    """`failures` in a row. One per process."""

    __slots__ = ("_bucket", "_not_before", "failures", "reconnect_s")

    def __init__(self) -> None:
        self.failures, self.reconnect_s = 0, RECONNECT_S
        self._bucket, self._not_before = TokenBucket(RATE, BURST), float("-inf")

    def ready_at(self, now: float) -> float:
        """When the next poll may begin, in monotonic seconds."""
        return max(self._not_before, self._bucket.ready_at(now))

    def begun(self, now: float) -> None:
        """A poll begins."""
        self._bucket.take(now)

    def answered(self, reconnect_s: float) -> None:
        """It was answered, and the service asks for lost connections to come back within `reconnect_s` seconds."""
        self.failures, self._not_before = 0, float("-inf")
        self.reconnect_s = max(RECONNECT_S, reconnect_s)

    def failed(self, now: float, rng: Rng) -> float:
        """It failed, in whatever way. Seconds until the next."""
        self.failures += 1
        delay_s = rng.random() * self.ceiling_s(self.failures)
        self._not_before = now + delay_s
        return delay_s

    def postponed(self, now: float, rng: Rng) -> None:
        """It was not made, because our own breaker let nobody through: no failure, and not for long."""
        self._not_before = now + rng.random() * RECONNECT_S

    def ceiling_s(self, failures: int) -> float:
        """The longest wait after so many failures in a row."""
        cap_s = max(self.reconnect_s, min(CAP_S, CAP_FACTOR * self.reconnect_s))
        return float(min(cap_s, self.reconnect_s * 2.0 ** min(failures - 1, DOUBLINGS_MAX)))
