"""Deadlines: every call has a total one, always; an attempt may have a shorter one.

The call's deadline is the earliest of: its own timeout (caller > route > service), the ceiling `limits.max_timeout`,
and what is left of the call being served; it is never extended. Here it is only arithmetic: the one timer that is
armed is the attempt's, in the leaf; retries are checked against it before they wait. Source: Finagle `Deadline`, gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..call import Call, Reply
    from ..stack import Service


class Deadline:
    """`timeout_s`: the policy's for this route; `ceiling_s`: nobody may ask for more. Seconds, > 0."""

    __slots__ = ("ceiling_s", "now", "timeout_s")

    def __init__(self, timeout_s: float, ceiling_s: float, now: Callable[[], float]) -> None:
        self.timeout_s, self.ceiling_s, self.now = min(timeout_s, ceiling_s), ceiling_s, now

    async def __call__(self, call: Call, service: Service) -> Reply:
        timeout_s = call.timeout_s
        if timeout_s is None:
            timeout_s = self.timeout_s
        elif timeout_s > self.ceiling_s:
            timeout_s = self.ceiling_s
        call.started = started = self.now()
        deadline = started + timeout_s
        served = call.served
        if served is not None and served.deadline < deadline:
            deadline = served.deadline
            if deadline <= started:
                raise DeadlineExceeded(
                    f"the deadline of the call being served passed before {call.service!r} was called",
                    phase="pool",
                    sent=False,
                    total=True,
                )
        call.deadline = call.attempt_deadline = deadline
        return await service(call)


class AttemptTimeout:
    """Each attempt ends after `timeout_s` seconds, or with the call. Absent where there is no `per_try_timeout`."""

    __slots__ = ("now", "timeout_s")

    def __init__(self, timeout_s: float, now: Callable[[], float]) -> None:
        self.timeout_s, self.now = timeout_s, now

    async def __call__(self, call: Call, service: Service) -> Reply:
        call.attempt_deadline = min(call.deadline, self.now() + self.timeout_s)
        return await service(call)
