"""When a leaf is renewed, and when again after a failure."""

from __future__ import annotations

import random

import pytest

from meshlib.identity.ca import BACKDATE_S
from meshlib.identity.renewal import RETRY_BASE_S, RETRY_CAP_S, TRIES_LEFT, Schedule, renewal_s

from .clocks import Chance

NOW = 1_800_000_000.0
NEVER = float("inf")


@pytest.mark.parametrize(("chance", "share"), [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55)])
def test_half_of_the_life_with_jitter(chance: float, share: float) -> None:
    """± 10 % of that half."""
    assert renewal_s(1000.0, Chance(chance)) == pytest.approx(share * 1000.0)


def test_at_once_until_told() -> None:
    """Nothing was planned, so it is due; then at the time that was planned, and no earlier."""
    schedule = Schedule()
    assert schedule.due(NOW)
    schedule.next(NOW, 10.0)
    assert [schedule.due(NOW + s) for s in (0.0, 9.9, 10.0, 1000.0)] == [False, False, True, True]


def test_within_only_brings_forward() -> None:
    """The earlier of the two."""
    schedule = Schedule()
    schedule.next(NOW, 10.0)
    schedule.within(NOW, 20.0)
    assert not schedule.due(NOW + 9.9)
    assert schedule.due(NOW + 10.0)
    schedule.within(NOW, 5.0)
    assert not schedule.due(NOW + 4.9)
    assert schedule.due(NOW + 5.0)


def test_a_clock_that_went_back_makes_everything_due() -> None:
    """By more than the minute that certificates are backdated; a little adjustment does nothing."""
    schedule = Schedule()
    schedule.next(NOW, 10.0)
    assert not schedule.due(NOW - BACKDATE_S)
    assert schedule.due(NOW - BACKDATE_S - 1)


def test_failures_wait_longer_and_longer_by_chance() -> None:
    """The ceilings are 1, 3, 7, 15, then 30 s for ever; the chance is over the whole of each, at the cap too."""
    for chance in (0.25, 0.999):
        schedule, waits = Schedule(), []
        for _ in range(40):
            schedule.failed(NOW, NEVER, Chance(chance))
            waits.append(schedule._at - NOW)
        assert waits[:5] == pytest.approx([chance * s for s in (1, 3, 7, 15, 30)], abs=1e-4)
        assert waits[5:] == pytest.approx([chance * RETRY_CAP_S] * 35, abs=1e-4)
    assert RETRY_BASE_S == 1.0


def test_a_success_starts_over() -> None:
    """The next failure waits no longer than the first."""
    schedule = Schedule()
    for _ in range(9):
        schedule.failed(NOW, NEVER, Chance(0.999))
    schedule.next(NOW, 100.0)
    schedule.failed(NOW, NEVER, Chance(0.999))
    assert schedule._at - NOW == pytest.approx(0.999)


@pytest.mark.parametrize("left_s", [1.0, 10.0, 60.0, 600.0])
@pytest.mark.parametrize("failed_before", [0, 3, 20])
def test_three_tries_are_left_before_the_end(left_s: float, failed_before: int) -> None:
    """Whatever chance says, and however long it has failed already."""
    for seed in range(20):
        rng = random.Random(seed)
        schedule, now, tries = Schedule(), NOW - 1000.0, 0
        for _ in range(failed_before):
            schedule.failed(now, NOW + left_s, rng)
        now = NOW
        while True:
            schedule.failed(now, NOW + left_s, rng)
            now = schedule._at
            if now >= NOW + left_s or tries == TRIES_LEFT:
                break
            tries += 1
        assert tries == TRIES_LEFT, seed


def test_after_the_end_there_is_no_haste() -> None:
    """A thousand processes whose leaves have ended do not ask a thousand times a second."""
    schedule = Schedule()
    for _ in range(9):
        schedule.failed(NOW, NOW - 1, Chance(0.5))
    assert schedule._at - NOW == pytest.approx(15.0)
