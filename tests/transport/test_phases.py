"""The limits of an attempt, by phase."""

from __future__ import annotations

import pytest

from meshlib.call import FOREVER, Call, PhaseTimeouts
from meshlib.transport import phases


def attempt(attempt_deadline: float, deadline: float) -> Call:
    call = Call("s", "GET", b"/")
    call.attempt_deadline, call.deadline = attempt_deadline, deadline
    return call


def test_a_phase_never_outlives_the_attempt() -> None:
    """The sooner of the attempt's deadline and the phase's own cap; no cap, no change."""
    call = attempt(10.0, 20.0)
    assert phases.limit(call, None, 5.0) == 10.0
    assert phases.limit(call, 2.0, 5.0) == 7.0
    assert phases.limit(call, 6.0, 5.0) == 10.0
    assert phases.limit(attempt(FOREVER, FOREVER), 6.0, 5.0) == 11.0


@pytest.mark.parametrize(
    ("route", "read", "gap"), [(None, None, 300.0), (7.0, None, 7.0), (7.0, 3.0, 3.0), (None, 400.0, 300.0)]
)
def test_the_gap_of_a_stream(route: float | None, read: float | None, gap: float) -> None:
    """The route's, or 300 s; a read timeout of the caller may only shorten it."""
    call = attempt(1.0, 1.0)
    call.route = None if route is None else type("Route", (), {"stream_idle_timeout_s": route})
    call.phases = None if read is None else PhaseTimeouts(None, read, None, None)
    assert phases.stream_gap(call) == gap


def test_the_error_says_whose_time_it_was() -> None:
    """total: only where the call's own deadline passed; the sentence names attempt, phase and address."""
    late = phases.expired(attempt(10.0, 20.0), 10.0, "read", "a:1", sent=True)
    assert (late.total, late.phase, late.sent) == (False, "read", True)
    assert str(late) == "a:1: the time of attempt 1 passed while waiting for the reply"
    total = phases.expired(attempt(10.0, 10.0), 10.0, "connect", "a:1", sent=False)
    assert (total.total, total.sent) == (True, False)
    assert str(total) == "a:1: the call's deadline passed while connecting"
    capped = phases.expired(attempt(10.0, 10.0), 7.0, "pool", "a:1", sent=False)
    assert not capped.total
    assert str(capped) == "a:1: the pool timeout passed while waiting for a free connection"
