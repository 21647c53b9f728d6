"""The retry budget: how many retries a caller may add to the load, as a share of its calls.

Why a budget and not a maximum count: a count multiplies load exactly when everything fails. With 20 % a full outage
costs 1.2 × the calls, whatever the count. One budget per (process, destination), shared by retries and hedges.
Each call deposits; each retry withdraws 1/percent deposits; both fade after `TTL_S`; `min_per_second` × TTL is always
there, so that a quiet caller may retry too. Source: Finagle `RetryBudget`, whose vectors it passes; the defaults 20 %
and 10/s over 10 s are Finagle's and linkerd's.
"""

from __future__ import annotations

TTL_S = 10.0
"""How long deposits and withdrawals count, in seconds (Finagle; its range is 1 to 60)."""
SLICES = 10
"""The window moves in tenths (Finagle `WindowedAdder`)."""


class RetryBudget:
    """`percent` in [0, 1]: retries per call. `min_per_second` ≥ 0: always allowed. Used under its owner's lock.

    A `now` that is behind an earlier one (another thread's) counts as the latest: time never goes back here.
    """

    __slots__ = ("_at", "_cost", "_deposit", "_reserve", "_slice_s", "_slices", "_sum")

    def __init__(self, percent: float = 0.2, min_per_second: float = 10.0, ttl_s: float = TTL_S) -> None:
        if not 0.0 <= percent <= 1.0:
            raise ValueError(f"budget percent must be 0 to 1, got {percent}")
        if min_per_second < 0:
            raise ValueError(f"budget min_per_second must not be negative, got {min_per_second}")
        if not 1.0 <= ttl_s <= 60.0:
            raise ValueError(f"budget ttl must be 1 to 60 seconds, got {ttl_s}")
        self._deposit = 1.0 if percent else 0.0
        self._cost = 1.0 / percent if percent else 1.0
        self._reserve = min_per_second * ttl_s * self._cost
        self._slice_s = ttl_s / SLICES
        self._slices = [0.0] * SLICES
        self._sum, self._at = 0.0, 0

    def deposit(self, now: float) -> None:
        """A call (not a retry) was made."""
        at = int(now / self._slice_s)
        if at > self._at:
            self._advance(at)
        self._slices[self._at % SLICES] += self._deposit
        self._sum += self._deposit

    def withdraw(self, now: float) -> bool:
        """May one retry be made? True takes it."""
        at = int(now / self._slice_s)
        if at > self._at:
            self._advance(at)
        if self._sum + self._reserve < self._cost - 1e-6:
            return False
        self._slices[self._at % SLICES] -= self._cost
        self._sum -= self._cost
        return True

    def balance(self, now: float) -> float:
        """Retries that could be made right now."""
        at = int(now / self._slice_s)
        live = sum(self._slices[s % SLICES] for s in range(max(at - SLICES + 1, self._at - SLICES + 1), self._at + 1))
        return max(0.0, (live + self._reserve) / self._cost)

    def _advance(self, at: int) -> None:
        """Forget the slices that are too old: at most SLICES of them, however long it was idle."""
        for old in range(self._at + 1, min(at, self._at + SLICES) + 1):
            self._slices[old % SLICES] = 0.0
        self._at = at
        self._sum = sum(self._slices)
