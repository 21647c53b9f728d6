"""Outlier detection: an endpoint that answers badly several times in a row is ejected for a while.

What counts: 5xx, resets, timeouts of full length. What does not: 4xx, a cancelled call, a deadline of the caller's
that is shorter than the policy's, anything refused by ourselves; failures to connect are the breaker's. Ejection is
capped: it takes at most `max_ejection_percent` of the endpoints, but at least one may go and at least one stays.
Sources: Envoy outlier detection (consecutive_5xx 5, 30 s × times ejected, at most 300 s), gRFC A50 (the cap is checked
before each ejection), FAULTS F08 (never fewer than half stay, hence 50 % where Envoy has 10 %).
"""

from __future__ import annotations

from dataclasses import dataclass

from .breaker import BreakerPolicy

EJECTION_TIME_MAX_S = 300.0
"""Envoy `max_ejection_time`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierPolicy:
    """`consecutive_errors` ≥ 1; `base_ejection_time_s` > 0 seconds; `max_ejection_share` in (0, 1]."""

    consecutive_errors: int = 5
    base_ejection_time_s: float = 30.0
    max_ejection_share: float = 0.5

    def breaker(self) -> BreakerPolicy:
        """The same, as the breaker that keeps the count of one endpoint."""
        return BreakerPolicy(
            max_failures=self.consecutive_errors,
            base_s=self.base_ejection_time_s,
            max_s=max(EJECTION_TIME_MAX_S, self.base_ejection_time_s),
            doubling=False,
        )

    def may_eject(self, ejected: int, total: int) -> bool:
        """May one more of `total` endpoints be ejected, when `ejected` are already?"""
        return ejected < min(max(1, int(total * self.max_ejection_share)), total - 1)
