"""The clock of versions: a number that only grows, near the wall clock where that is right.

Versions must never go back, also when the store was restored from an old backup (F04): whatever was published after
the backup was made has a lower number than what is published now, because time went on. Also a wall clock that is set
back does no harm: then it counts on.

Source: Kulkarni et al., Logical Physical Clocks (2014); here the logical part is the millisecond itself.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST = 1
"""The version of what never was: below every one that a clock gives, even in 1970."""


class HybridClock:
    """`last`: the highest version ever given out, 0 for none. `wall` gives unix seconds. One thread at a time."""

    __slots__ = ("_last", "_wall")

    def __init__(self, last: int, wall: Callable[[], float]) -> None:
        self._last, self._wall = max(last, FIRST), wall

    def next(self) -> int:
        """A version above every one before: `max(last + 1, unix milliseconds)`."""
        self._last = max(self._last + 1, int(self._wall() * 1000))
        return self._last
