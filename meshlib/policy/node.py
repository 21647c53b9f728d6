"""A node: an endpoint and what this process has learned about it. It survives policy and endpoint updates by address.

Eligibility is decided here, inside the pick: a local refusal after the pick would cost an attempt. Everything changes
under the lock of the node's cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .breaker import ABSENT, REACHABILITY, Breaker
from .load import UNKNOWN_COST, PeakEwma
from .session_persistence import endpoint_key

if TYPE_CHECKING:
    from ..endpoint import Endpoint
    from ..errors import MeshError
    from ..runtime import Rng
    from .breaker import BreakerPolicy
    from .outlier import OutlierPolicy

STATES = ("ready", "unreachable", "ejected", "probation")
"""What `Node.state` says."""


class Node:
    """`inflight`: requests whose body has not ended. `reach`: does it accept? `ejection`: does it answer well?

    `trouble`: why it could last not be reached, as a clause. `key`: names it to a session, as one of `service`.
    """

    __slots__ = ("ejection", "endpoint", "ewma", "inflight", "key", "reach", "trouble")

    def __init__(self, endpoint: Endpoint, outlier: OutlierPolicy, service: str = "") -> None:
        self.endpoint, self.key = endpoint, endpoint_key(service, endpoint.address)
        self.inflight = 0
        self.trouble = "cannot be connected to"
        self.ewma = PeakEwma()
        self.reach, self.ejection = Breaker(_reachability(endpoint)), Breaker(outlier.breaker())

    def updated(self, endpoint: Endpoint, outlier: OutlierPolicy) -> Node:
        """The same node under a new policy: what was learned is kept. One whose lease is back may be probed at once."""
        if self.endpoint.absent and not endpoint.absent:
            self.reach.due()
        self.endpoint, self.reach.policy, self.ejection.policy = endpoint, _reachability(endpoint), outlier.breaker()
        return self

    def admits(self, now: float) -> bool:
        """May it be picked?"""
        return (self.reach.until == 0.0 and self.ejection.until == 0.0) or (
            self.reach.admits(now) and self.ejection.admits(now)
        )

    def last_resort(self, now: float) -> bool:
        """May it be picked where no node is admitted? One that answers badly may, one that cannot be reached not."""
        return self.reach.admits(now)

    def why_not(self, now: float) -> str:
        """Why it may not be picked, as a clause; '' when it may."""
        for breaker, word in ((self.reach, self.trouble), (self.ejection, "ejected for its errors")):
            if not breaker.admits(now):
                left = breaker.until - now
                return f"{word}, a probe is under way" if left <= 0 else f"{word}, next probe in {left:.1f} s"
        return ""

    def load(self, now: float) -> float:
        """Expected cost of one more request, in seconds."""
        cost = self.ewma.get_at(now)
        if cost == 0.0 and self.inflight:
            return UNKNOWN_COST + self.inflight
        return cost * (self.inflight + 1)

    def begin(self, now: float) -> int:
        """A request starts. The result is to be given back at its end: which breakers it is the probe of."""
        self.inflight += 1
        if self.reach.until == 0.0 and self.ejection.until == 0.0:
            return 0
        return self.reach.begin(now) | self.ejection.begin(now) << 1

    def succeeded(self, latency_s: float, now: float, probe: int) -> None:
        """It answered, and well, after `latency_s`."""
        self.ewma.observe(latency_s, now)
        if self.reach.failures or self.reach.until:
            self.reach.succeeded(bool(probe & 1))
        if self.ejection.failures or self.ejection.until:
            self.ejection.succeeded(bool(probe & 2))

    def unreachable(
        self,
        now: float,
        rng: Rng,
        probe: int,
        *,
        proof: bool,
        trouble: str = "cannot be connected to",
        cause: MeshError | None = None,
    ) -> None:
        """It could not be connected to; `proof`: it refused, or is not who it must be. `trouble`: which, as a clause.

        `cause`: the error, for a subclass that tells others.
        """
        self.trouble = trouble
        self.reach.failed(now, rng, bool(probe & 1), self.reach.policy.max_failures if proof else 1)
        self.ejection.abandoned(bool(probe & 2))

    def erred(self, now: float, rng: Rng, probe: int, *, may_eject: bool, cause: MeshError | int | None = None) -> bool:
        """It answered badly: `cause` is the status or error, for a subclass that tells others. True when ejected."""
        self.reach.succeeded(bool(probe & 1))
        if may_eject or probe & 2:
            return self.ejection.failed(now, rng, bool(probe & 2))
        return False

    def abandoned(self, probe: int) -> None:
        """The request ended without saying anything about the endpoint."""
        if probe:
            self.reach.abandoned(bool(probe & 1))
            self.ejection.abandoned(bool(probe & 2))

    def state(self, now: float) -> str:
        """One of STATES."""
        if self.reach.until == 0.0 and self.ejection.until == 0.0:
            return "ready"
        if self.reach.admits(now) and self.ejection.admits(now):
            return "probation"
        return "unreachable" if not self.reach.admits(now) else "ejected"


def _reachability(endpoint: Endpoint) -> BreakerPolicy:
    return ABSENT if endpoint.absent else REACHABILITY
