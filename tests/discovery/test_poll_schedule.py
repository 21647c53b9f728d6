"""When the config service is asked again."""

from __future__ import annotations

import itertools
import random

import pytest

from meshlib.discovery.poll_schedule import BURST, CAP_S, RATE, PollSchedule, poll_timeout_s


def polls_within(seconds: float, schedule: PollSchedule, answered_after_s: float = 0.0) -> list[float]:
    """The moments of the polls of a service that answers at once."""
    now, moments = 0.0, []
    while (now := schedule.ready_at(now)) < seconds:
        schedule.begun(now)
        moments.append(now)
        now += answered_after_s
        schedule.answered(1.0)
    return moments


def test_a_service_that_always_answers_at_once_is_not_asked_in_a_loop() -> None:
    """At most 2 a second, with a burst of 2 (F04)."""
    moments = polls_within(60.0, PollSchedule())
    assert len(moments) <= 60 * RATE + BURST
    assert moments[:2] == [0.0, 0.0]
    assert min(later - earlier for earlier, later in itertools.pairwise(moments[2:])) >= 0.499


def test_a_poll_that_was_held_is_followed_at_once() -> None:
    """The bucket has filled up meanwhile: a change is never late for it."""
    moments = polls_within(100.0, PollSchedule(), answered_after_s=10.0)
    assert moments == [pytest.approx(10.0 * n) for n in range(10)]


def test_failures_back_off_with_full_jitter_also_at_the_cap() -> None:
    """The ceiling doubles up to the cap; below it the wait is anything, also after a thousand failures."""
    schedule, rng = PollSchedule(), random.Random(7)
    schedule.answered(60.0)
    waits = [schedule.failed(0.0, rng) for _ in range(1000)]
    assert max(waits) <= 60.0
    late = waits[-500:]
    assert min(late) < 3.0
    assert max(late) > 57.0


@pytest.mark.parametrize(("reconnect_s", "cap_s"), [(1.0, 4.0), (5.0, 20.0), (10.0, 30.0), (60.0, 60.0)])
def test_the_service_says_how_slowly_a_herd_returns(reconnect_s: float, cap_s: float) -> None:
    """A small mesh is back within four seconds, a large one spreads its first return over what the service asks."""
    schedule = PollSchedule()
    schedule.answered(reconnect_s)
    assert schedule.ceiling_s(1) == min(reconnect_s, cap_s)
    assert schedule.ceiling_s(50) == cap_s
    assert cap_s <= max(CAP_S, reconnect_s)


def test_an_answer_ends_the_backoff() -> None:
    """The next poll is due at once."""
    schedule, rng = PollSchedule(), random.Random(1)
    for _ in range(5):
        schedule.failed(100.0, rng)
    assert schedule.failures == 5
    schedule.answered(1.0)
    assert schedule.failures == 0
    assert schedule.ready_at(100.0) == 100.0


def test_a_poll_is_given_up_in_bounded_time() -> None:
    """wait + wait / 16 + 5 s (F02)."""
    assert poll_timeout_s(32.0) == 39.0
    assert poll_timeout_s(0.0) == 5.0
