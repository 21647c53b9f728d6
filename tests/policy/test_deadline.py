"""Deadlines: the earliest of caller, ceiling and the call being served; never extended."""

from __future__ import annotations

import asyncio

import pytest

from meshlib.call import FOREVER, Call, Reply
from meshlib.errors import DeadlineExceeded
from meshlib.policy.deadline import AttemptTimeout, Deadline
from meshlib.served import Served


async def leaf(_call: Call) -> Reply:
    return Reply(200, [])


@pytest.mark.parametrize(
    ("policy", "ceiling", "asked", "left", "expected"),
    [
        (2.0, 30.0, None, None, 2.0),
        (2.0, 1.0, None, None, 1.0),
        (2.0, 30.0, 5.0, None, 5.0),
        (2.0, 30.0, 0.5, None, 0.5),
        (2.0, 30.0, 60.0, None, 30.0),
        (2.0, 30.0, None, 0.7, 0.7),
        (2.0, 30.0, 0.5, 0.7, 0.5),
        (2.0, 30.0, None, 9.0, 2.0),
        (2.0, 30.0, None, FOREVER, 2.0),
    ],
)
def test_the_earliest_counts(policy, ceiling, asked, left, expected):
    """Caller's timeout or the policy's, below the ceiling, below what is left of the call being served."""
    now = 1000.0
    served = None if left is None else Served(lambda: now, deadline=min(FOREVER, now + left))
    call = Call("svc", "GET", b"/", timeout_s=asked, served=served)
    asyncio.run(Deadline(policy, ceiling, lambda: now)(call, leaf))
    assert call.started == now
    assert call.deadline == call.attempt_deadline == pytest.approx(now + expected)


def test_nothing_is_begun_for_a_caller_that_has_given_up():
    """The served call's deadline has passed: total, nothing sent, the service is not called."""
    called = []

    async def never(call: Call) -> Reply:
        called.append(call)
        return Reply(200, [])

    call = Call("svc", "GET", b"/", served=Served(lambda: 10.0, deadline=10.0))
    with pytest.raises(DeadlineExceeded, match="'svc'") as caught:
        asyncio.run(Deadline(2.0, 30.0, lambda: 10.0)(call, never))
    assert (caught.value.total, caught.value.sent, caught.value.phase) == (True, False, "pool")
    assert called == []


@pytest.mark.parametrize(("deadline", "expected"), [(2000.0, 1000.5), (1000.2, 1000.2)])
def test_an_attempt_ends_with_the_call_at_the_latest(deadline, expected):
    """Per-try timeout from now, or the call's deadline where that is earlier; the call's own is not touched."""
    call = Call("svc", "GET", b"/")
    call.deadline = deadline
    asyncio.run(AttemptTimeout(0.5, lambda: 1000.0)(call, leaf))
    assert (call.attempt_deadline, call.deadline) == (expected, deadline)
