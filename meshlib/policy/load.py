"""Load of an endpoint: peak EWMA of its latency × what is in flight to it.

The average jumps up to a peak at once and decays towards what is measured later (Finagle `PeakEwma`, linkerd `ewma`):
a slow answer is believed immediately, a fast one slowly. Reading computes, observing learns: `get_at` changes nothing
(tower's mutates on read). A failure is observed as a long answer, or failing fast would look like being fast.
"""

from __future__ import annotations

from math import exp

DECAY_S = 4.0
"""Time constant of the decay in seconds. The peers have 10: an endpoint that was 100 × slower than the rest then gets
its share back after 4.6 to 7 time constants, 70 s at worst; with 4 it is 30 s, and a slow one still gets under 1 %."""
FAILURE_S = 1.0
"""A failed attempt counts as at least this long (linkerd's load biaser: 5 s, too long for one that recovers)."""
UNKNOWN_COST = 1e6
"""Cost of a second request to an endpoint that never answered yet: one probe at a time (Finagle's penalty)."""


class PeakEwma:
    """`cost_s`: seconds, as of the monotonic second `at`; 0.0 before the first observation."""

    __slots__ = ("at", "cost_s")

    def __init__(self) -> None:
        self.cost_s, self.at = 0.0, 0.0

    def get_at(self, now: float) -> float:
        """The average at `now`, decayed towards zero since it was last observed."""
        return self.cost_s * exp((self.at - now) / DECAY_S)

    def observe(self, latency_s: float, now: float) -> None:
        """Learn one latency, measured at `now`."""
        if latency_s > self.cost_s:
            self.cost_s = latency_s
        else:
            self.cost_s = latency_s + (self.cost_s - latency_s) * exp((self.at - now) / DECAY_S)
        self.at = now
