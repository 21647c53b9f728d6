"""Faults made on purpose: delays and refusals, drawn anew for each attempt. Sources: Envoy fault filter, gRFC A33.

Innermost in ROUTE, so that retries and timeouts are seen at work; above the balancer, so that no endpoint is blamed for
what it did not do. Nothing of an attempt that ends here was sent, and it says so: it may be tried again whatever its
method. A delay longer than the attempt or the call may take ends it when they end; a shorter one is not taken off
`per_try_timeout`, which begins behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DeadlineExceeded
from .refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..call import Call, Reply
    from ..runtime import Rng, Runtime
    from ..stack import Service


@dataclass(frozen=True, slots=True)
class FaultPolicy:
    """Shares from 0 to 1, drawn independently. `delay_s` ≥ 0. `status`: of the answer, `code`: the same for gRPC."""

    delay_s: float = 0.0
    delay_share: float = 0.0
    status: int = 503
    code: int | None = None
    abort_share: float = 0.0

    def draw(self, rng: Rng) -> tuple[float, bool]:
        """Seconds to wait first, and whether not to send it."""
        delay_s = self.delay_s if self.delay_share and rng.random() < self.delay_share else 0.0
        return delay_s, bool(self.abort_share) and rng.random() < self.abort_share


class Fault:
    """The filter. `record` is told "delay" or "abort" of each fault. `per_try_timeout_s`: of the attempts below it."""

    __slots__ = ("per_try_timeout_s", "policy", "record", "runtime")

    def __init__(
        self,
        policy: FaultPolicy,
        runtime: Runtime,
        record: Callable[[str], None],
        per_try_timeout_s: float | None = None,
    ) -> None:
        self.policy, self.runtime, self.record = policy, runtime, record
        self.per_try_timeout_s = per_try_timeout_s

    async def __call__(self, call: Call, service: Service) -> Reply:
        delay_s, abort = self.policy.draw(self.runtime.rng)
        if delay_s:
            self._note(call, "delay", f"{delay_s * 1e3:g} ms")
            await self._wait(call, delay_s)
        if abort:
            policy = self.policy
            self._note(call, "abort", str(policy.status))
            message = f"mesh.yaml has a fault on this route that answers {policy.status} to a share of the attempts"
            return refusal(policy.status, "fault", message, code=policy.code)
        return await service(call)

    async def _wait(self, call: Call, delay_s: float) -> None:
        runtime = self.runtime
        now = runtime.now()
        ends = call.attempt_deadline
        if self.per_try_timeout_s is not None:
            ends = min(ends, now + self.per_try_timeout_s)
        await runtime.sleep(min(delay_s, ends - now))
        if now + delay_s >= ends:
            raise DeadlineExceeded(
                f"an injected delay of {delay_s * 1e3:g} ms took all the time that the attempt had",
                phase="pool",
                sent=False,
                total=ends >= call.deadline,
            )

    def _note(self, call: Call, kind: str, what: str) -> None:
        call.trail.notes.append(f"attempt {call.number}: fault injected: {kind} {what}")
        self.record(kind)
