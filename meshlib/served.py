"""The call being served: who asks, how long there is, where in the trace it is. `meshlib.current()` returns it.

A contextvar carries it across `await`, tasks and worker threads, so that outgoing calls inherit the deadline and the
trace without a header being touched. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

from .call import FOREVER, TraceContext

if TYPE_CHECKING:
    from .identity.spiffe import SpiffeId


class Served:
    """`peer`: the caller's verified SPIFFE id, or None. `attempt`: which try of the caller this is, from 1.

    `deadline`: monotonic seconds, FOREVER where the caller set none. `trace`: this server's own place in the trace.
    `criticality` is the caller's level as sent, '' where it sent none. `spent`: a call made on behalf of this one has
    used up its retries or its budget, so the caller is told not to try again (`x-meshlib-no-retry`). `mirror`: it is a
    copy of a call that another endpoint answers, or was made to answer one: nobody waits for the answer, and what it
    writes is written by the other, too.
    """

    __slots__ = ("attempt", "criticality", "deadline", "mirror", "now", "peer", "spent", "trace")

    def __init__(
        self,
        now: Callable[[], float],
        *,
        peer: SpiffeId | None = None,
        deadline: float = FOREVER,
        attempt: int = 1,
        criticality: str = "",
        trace: TraceContext | None = None,
        mirror: bool = False,
    ) -> None:
        self.now, self.peer, self.deadline, self.attempt = now, peer, deadline, attempt
        self.criticality, self.trace, self.spent, self.mirror = criticality, trace, False, mirror

    def detached(self) -> Served:
        """The same caller, for work that it does not wait for: no deadline, and what is noted there is not reported."""
        return Served(
            self.now, peer=self.peer, attempt=self.attempt, criticality=self.criticality, trace=self.trace,
            mirror=self.mirror,
        )  # fmt: skip

    @property
    def remaining_s(self) -> float:
        """Seconds until the caller's deadline, never below 0; infinity where it set none."""
        return float("inf") if self.deadline >= FOREVER else max(0.0, self.deadline - self.now())

    @property
    def trace_id(self) -> str:
        """32 hex digits, or '' outside a trace."""
        return "" if self.trace is None else f"{self.trace.trace_id:032x}"


SERVED: ContextVar[Served | None] = ContextVar("meshlib.served", default=None)


def current() -> Served | None:
    """The call being served in this context, or None outside one."""
    return SERVED.get()
