"""Retries: whether to try again, and after how long. The whole decision is `RetryPolicy.refusal` and `delay_s`.

Rules, in order; each has a sentence that goes into the trail:
1. Never beyond `max_retries`, the deadline, or the budget.
2. Only what provably was not processed, or what is idempotent (RFC 9110 §9.2.2 methods, or declared). `retry_on` says
   which failures; it never widens that.
3. Only what can be sent again: a body that was streamed is gone once its first byte is.
4. Never retry a retry: a reply with `x-meshlib-no-retry` is final; so is what a call served as somebody's retry
   meets, unless provably unprocessed. The caller is told in turn by `Served.spent`.
Sources: gRFC A6 (commit rules), Envoy `retry_on`, Finagle (budget), Kitex (chain stop), Google SRE ch. 21.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..call import Call, Reply
from ..errors import DeadlineExceeded, IdentityError, MeshError, NoHealthyEndpoint, TransportError
from .backoff import backoff_s, steady_s
from .pushback import NEVER, PUSHBACK, pushback_s
from .retry_after import retry_after_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime import Lock, Rng, Runtime
    from ..stack import Service
    from .budget import RetryBudget

IDEMPOTENT_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
"""RFC 9110 §9.2.2."""
NO_RETRY = b"x-meshlib-no-retry"
REFUSED = b"x-meshlib-refused"
BUDGET_EMPTY = "the retry budget is empty"
SAID_NO = "the reply says not to retry"
RETRY_OF_RETRY = "the call being served is a retry itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """`max_retries` ≥ 0 is already below its ceiling `retries_ceiling`. `statuses`: replies to retry, `codes`: those of
    gRPC beside them.

    `on_connect`: retry what could not be connected. `on_reset`: retry what broke, or timed out, before a reply's head
    (Envoy's `reset`). Back-off in seconds, `multiplier` None: full jitter; see backoff.py. Defaults: one
    retry, connect_failure, reset, 503.
    """

    max_retries: int = 1
    retries_ceiling: int = 3
    statuses: frozenset[int] = field(default_factory=lambda: frozenset((503,)))
    codes: frozenset[int] = frozenset()
    on_connect: bool = True
    on_reset: bool = True
    base_interval_s: float = 0.025
    max_interval_s: float = 0.25
    multiplier: float | None = None

    def refusal(self, call: Call, outcome: Reply | MeshError) -> str | None:
        """Why `outcome` is final, as a clause for the trail; '' when it is no failure to retry; None: retry it.

        Budget and deadline are not asked here.
        """
        asked = self.max_retries if call.max_retries is None else min(call.max_retries, self.retries_ceiling)
        unsent = False
        if isinstance(outcome, Reply):
            if outcome.status not in self.statuses and outcome.code not in self.codes:
                return ""
            unsent = outcome.header(REFUSED) is not None  # refused by the mesh, before the application saw it
            if outcome.header(NO_RETRY) is not None or _pushback_s(outcome) == NEVER:
                return SAID_NO
        else:
            why = self._error_refusal(outcome)
            if why is not None:
                return why
            unsent = not outcome.sent
        if call.number > asked:
            return f"{asked} of {asked} retries used" if asked else "no retry is allowed"
        if not call.replayable and (isinstance(outcome, Reply) or outcome.sent):
            return "the body was streamed and cannot be sent again"
        if unsent:
            return None
        if not call.idempotent:
            return f"{call.method} is not declared idempotent"
        if call.served is not None and call.served.attempt > 1:
            return RETRY_OF_RETRY
        return None

    def wait_s(self, retry: int, rng: Rng) -> float:
        """The wait before the `retry`-th retry (from 1), in seconds."""
        if self.multiplier is None:
            return backoff_s(retry, self.base_interval_s, self.max_interval_s, rng)
        return steady_s(retry, self.base_interval_s, self.max_interval_s, self.multiplier, rng)

    def _error_refusal(self, error: MeshError) -> str | None:
        if isinstance(error, DeadlineExceeded):
            if error.total:
                return "the deadline has passed"
            wanted = self.on_reset if error.sent else self.on_connect
        elif isinstance(error, IdentityError):
            wanted = self.on_connect
        elif isinstance(error, TransportError) and error.cause not in ("local", "too_large", "decode"):
            wanted = self.on_reset if error.sent else self.on_connect
        else:
            return ""
        return None if wanted else "retry_on does not name this failure"


class Retry:
    """Try again within the deadline and the budget. A filter; the decision is RetryPolicy's."""

    def __init__(
        self,
        policy: RetryPolicy,
        budget: RetryBudget,
        lock: Lock,
        runtime: Runtime,
        wall: Callable[[], float],
    ) -> None:
        self.policy, self.budget, self.lock, self.runtime, self.wall = policy, budget, lock, runtime, wall
        self.now, self.statuses, self.codes = runtime.now, policy.statuses, policy.codes

    async def __call__(self, call: Call, service: Service) -> Reply:
        if not call.mirrored:  # a copy is never tried again, and pays for nobody else
            with self.lock:
                self.budget.deposit(call.started)
        outcome: Reply | MeshError
        earlier: Reply | MeshError | None = None
        idle_s = 0.0
        while True:
            try:
                outcome = await service(call)
                if outcome.status not in self.statuses and outcome.code not in self.codes:
                    return outcome
            except NoHealthyEndpoint as error:
                if earlier is None:
                    raise
                # What the endpoint did says more than that there is no other one.
                call.trail.notes.append(f"not retried: {error}")
                if isinstance(earlier, Reply):
                    return earlier
                raise earlier from error
            except MeshError as error:
                outcome = error
            delay_s = self._delay_s(call, outcome, idle_s)
            if delay_s is None:
                if isinstance(outcome, MeshError):
                    raise outcome
                return outcome
            earlier = outcome
            if isinstance(outcome, Reply) and outcome.stream is not None:
                await outcome.discard()
                earlier = None
            await self.runtime.sleep(delay_s)
            idle_s += delay_s
            call = call.fork()

    def _delay_s(self, call: Call, outcome: Reply | MeshError, idle_s: float) -> float | None:
        """Seconds until the next attempt, which is then paid for; None: `outcome` is final, and the trail says why."""
        policy = self.policy
        why = policy.refusal(call, outcome)
        if why is None:
            now = self.now()
            delay_s = self._wait_s(call, outcome, now, idle_s)
            if delay_s is None:
                why = "the schedule of this call ends here"
            elif now + delay_s >= call.deadline:
                why = "the deadline leaves no time for another attempt"
            else:
                with self.lock:
                    paid = self.budget.withdraw(now)
                if paid:
                    return delay_s
                why = BUDGET_EMPTY
        if why:
            call.trail.notes.append(f"not retried: {why}")
            tried = call.number > 1 or why in (BUDGET_EMPTY, SAID_NO, RETRY_OF_RETRY)
            if tried and call.served is not None and (isinstance(outcome, Reply) or outcome.sent):
                call.served.spent = True
        return None

    def _wait_s(self, call: Call, outcome: Reply | MeshError, now: float, idle_s: float) -> float | None:
        """What the policy or the call's own schedule would wait, and never less than the reply asks for."""
        pushed_s = _pushback_s(outcome) if isinstance(outcome, Reply) else None
        if pushed_s is not None and call.schedule is None:
            return pushed_s
        rng = self.runtime.rng
        own_s = self.policy.wait_s(call.number, rng)
        asked_s = self._asked_s(outcome)
        if call.schedule is None:
            return max(own_s, asked_s)
        delay_s = call.schedule.delay_s(
            call.number, now - call.started, outcome, rng, idle_s=idle_s, backoff_s=own_s, asked_s=asked_s
        )
        return None if delay_s is None else max(delay_s, asked_s)

    def _asked_s(self, outcome: Reply | MeshError) -> float:
        if not isinstance(outcome, Reply) or (value := outcome.header(b"retry-after")) is None:
            return 0.0
        return retry_after_s(value.decode("latin-1"), outcome.status, self.wall()) or 0.0


def _pushback_s(reply: Reply) -> float | None:
    return None if reply.code is None else pushback_s(reply.header(PUSHBACK))
