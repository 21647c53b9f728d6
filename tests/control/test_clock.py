"""The clock of versions."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from meshlib.control.clock import FIRST, HybridClock


def test_a_version_is_the_time_in_milliseconds_where_that_is_above_the_last():
    """So a store that was restored from a backup goes on above what was published after the backup was made (F04)."""
    assert HybridClock(0, lambda: 1_700_000_000.5).next() == 1_700_000_000_500
    assert HybridClock(1_600_000_000_000, lambda: 1_700_000_000.5).next() == 1_700_000_000_500


def test_within_a_millisecond_it_counts():
    """Two versions are never the same."""
    clock = HybridClock(0, lambda: 2.0)
    assert [clock.next() for _ in range(3)] == [2000, 2001, 2002]


@given(last=st.integers(0, 2**50), walls=st.lists(st.floats(0, 2**40), min_size=2))
def test_it_never_goes_back(last, walls):
    """Whatever the wall clock does, each version is above the one before, above the last of the store, and above FIRST."""
    times = iter(walls)
    clock = HybridClock(last, lambda: next(times))
    versions = [max(last, FIRST), *(clock.next() for _ in walls)]
    assert all(before < after for before, after in pairwise(versions))
