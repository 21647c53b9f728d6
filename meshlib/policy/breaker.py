"""The circuit breaker of one endpoint: consecutive failures shut it, one real request at a time may open it again.

    open for traffic ──failures ≥ max_failures──▶ shut ──backoff over──▶ probation (one permit)
           ▲                                        ▲                        │
           └──────────────── success ───────────────┼─────── failure ────────┘   each trip waits longer

Rules of this file: answers that arrive while it is shut say nothing (they were sent before), only the probe's does; a
probe that is given up gives its permit back. Source: linkerd2-proxy `breaker/consecutive_failures.rs`, whose vectors
it passes. Two of them guard an endpoint: `REACHABILITY` here (is anybody there?) and the ejection of `outlier.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime import Rng

DOUBLINGS_MAX = 32
"""Trips beyond this wait no longer: keeps the exponent bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """Shut after `max_failures` ≥ 1 in a row, first for `base_s`, at most for `max_s` seconds.

    `doubling`: each trip in a row waits twice as long (else base × trips, as Envoy ejects). `jitter` in [0, 1) makes
    the wait longer by up to that share, so that clients do not probe in step.
    """

    max_failures: int
    base_s: float
    max_s: float
    doubling: bool = True
    jitter: float = 0.0

    def wait_s(self, trips: int, rng: Rng) -> float:
        """How long the `trips`-th trip in a row lasts, in seconds."""
        factor = 2.0 ** min(trips - 1, DOUBLINGS_MAX) if self.doubling else float(trips)
        wait = min(self.max_s, self.base_s * factor)
        return wait * (1.0 + self.jitter * rng.random()) if self.jitter else wait


REACHABILITY = BreakerPolicy(max_failures=5, base_s=0.2, max_s=1.5, jitter=0.2)
"""Shuts an endpoint that cannot be connected to. A refused connection is proof, and counts for all five; a connect
timeout is a sample. The longest wait keeps "first success within 2 s of its return" (linkerd: 1 s to 1 min)."""

ABSENT = BreakerPolicy(max_failures=1, base_s=2.0, max_s=30.0, jitter=0.2)
"""In its place while the endpoint's lease has ended: it has probably gone, so that one failure is believed, and each
probe costs a call. When its lease is back, the next probe is due at once."""


class Breaker:
    """State of one breaker.

    `until`: 0.0 open for traffic, else the monotonic second at which probation begins; -inf: it has begun.
    """

    __slots__ = ("failures", "policy", "probing", "trips", "until")

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.failures = self.trips = 0
        self.until, self.probing = 0.0, False

    def admits(self, now: float) -> bool:
        """May a request go through at `now`? Reading changes nothing."""
        return self.until == 0.0 or (now >= self.until and not self.probing)

    def state(self, now: float) -> str:
        """One of: open-for-traffic, shut, probation."""
        if self.until == 0.0:
            return "open-for-traffic"
        return "probation" if now >= self.until else "shut"

    def begin(self, now: float) -> bool:
        """A request starts. True when it is the probe: its end must be told with `probe=True`."""
        if self.until == 0.0 or now < self.until or self.probing:
            return False
        self.probing = True
        self.changed("probation")
        return True

    def succeeded(self, probe: bool) -> None:
        """A request ended well."""
        if self.until == 0.0:
            self.failures = 0
        elif probe:
            self.until, self.probing, self.failures, self.trips = 0.0, False, 0, 0
            self.changed("open-for-traffic")

    def failed(self, now: float, rng: Rng, probe: bool, weight: int = 1) -> bool:
        """A request failed; `weight` counts it as that many. True when this shut the breaker."""
        if self.until != 0.0 and not probe:
            return False
        self.failures += weight
        if not probe and self.failures < self.policy.max_failures:
            return False
        self.trips += 1
        self.probing = False
        self.until = now + self.policy.wait_s(self.trips, rng)
        self.changed("shut")
        return True

    def abandoned(self, probe: bool) -> None:
        """A request was given up and says nothing; a probe's permit is free again."""
        if probe:
            self.probing = False

    def due(self) -> None:
        """There is news of the endpoint: where it is shut the next probe is due, and waits begin anew."""
        if self.until != 0.0:
            self.until, self.trips = -math.inf, 0

    def changed(self, state: str) -> None:
        """It has gone over to `state`, by a request's end or as a probe began. For a subclass that tells others."""
