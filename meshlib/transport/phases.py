"""The time limits of one attempt, by phase, and the error when one of them passes.

Every phase ends by the attempt's deadline. `call.phases` may end connect, pool, each write and each read sooner
(httpx's four timeouts). A streamed body has left the attempt: there only the gap between two pieces is limited.
"""

from __future__ import annotations

from ..call import Call
from ..errors import DeadlineExceeded, Phase

STREAM_IDLE_S = 300.0
"""The longest gap between two pieces of a streamed reply, where its route says nothing; Envoy's stream_idle_timeout."""

CONTINUE_S = 1.0
"""How long a body waits for `100 Continue` before it is sent anyway (RFC 9110 §10.1.1: not indefinitely)."""

LONGEST_S = 86400.0
"""No single wait of a thread is longer, even for a call without any deadline."""

_WHILE = {
    "pool": "waiting for a free connection",
    "connect": "connecting",
    "write": "sending the request",
    "read": "waiting for the reply",
}


def limit(call: Call, cap_s: float | None, now: float) -> float:
    """When an operation that starts now must have ended: the attempt's deadline, or sooner by `cap_s`."""
    deadline = call.attempt_deadline
    return deadline if cap_s is None or now + cap_s > deadline else now + cap_s


def stream_gap(call: Call) -> float:
    """Seconds that may pass between two pieces of a streamed reply."""
    idle: float | None = getattr(call.route, "stream_idle_timeout_s", None)
    gap = STREAM_IDLE_S if idle is None else idle
    read = None if call.phases is None else call.phases.read
    return gap if read is None else min(gap, read)


def expired(
    call: Call, at: float, phase: Phase, address: str, *, sent: bool, streamed: bool = False
) -> DeadlineExceeded:
    """The error for a limit `at` (monotonic seconds) that has passed."""
    if streamed:
        message = f"{address}: no piece of the streamed reply came within {stream_gap(call):g} s"
        return DeadlineExceeded(message, phase=phase, sent=True)
    total = at >= call.deadline
    what = "the call's deadline" if total else f"the time of attempt {call.number}"
    if at < call.attempt_deadline:
        what = f"the {phase} timeout"
    return DeadlineExceeded(f"{address}: {what} passed while {_WHILE[phase]}", phase=phase, sent=sent, total=total)
