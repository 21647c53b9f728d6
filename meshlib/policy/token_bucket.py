"""A token bucket: how often something may be done, with a burst. Tokens are computed, never filled by a timer.

Source: RFC 2698 (single rate); Go `golang.org/x/time/rate` for the reading "when will there be one?".
"""

from __future__ import annotations


class TokenBucket:
    """`rate` > 0 tokens a second, at most `burst` ≥ 1 of them, full at first. `now` is monotonic seconds."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError(f"a token bucket has a rate above 0 and a burst from 1, not {rate!r} and {burst!r}")
        self.rate, self.burst = rate, burst
        self._tokens, self._at = float(burst), float("-inf")

    def ready_at(self, now: float) -> float:
        """When there is a token, in monotonic seconds; `now` where there is one. Reading changes nothing."""
        have = self._have(now)
        return now if have >= 1.0 else now + (1.0 - have) / self.rate

    def take(self, now: float) -> bool:
        """Take one token; False: there is none, and nothing has changed."""
        have = self._have(now)
        if have < 1.0:
            return False
        self._tokens, self._at = have - 1.0, now
        return True

    def _have(self, now: float) -> float:
        return self.burst if self._at == float("-inf") else min(self.burst, self._tokens + (now - self._at) * self.rate)
