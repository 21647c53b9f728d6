"""Clusters, scripted endpoints and closed loops in virtual time, for the tests of this folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from meshlib.call import Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.policy.balance import Balance, BalancerName, Cluster
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy
from meshlib.runtime.simulation import SimulationRuntime
from meshlib.stack import Service

FULL_ATTEMPT_S = 0.5

Answer = Callable[[int, float], tuple[int, float]]
"""(endpoint, now) → (status, seconds)."""


def cluster(
    weights: Sequence[int] = (1, 1, 1, 1, 1), policy: BalancerName = "peak_ewma", outlier: OutlierPolicy | None = None
) -> Cluster:
    """A cluster of endpoints n0, n1, … on port 80."""
    outlier = outlier or OutlierPolicy()
    nodes = [Node(Endpoint(f"n{index}", 80, weight=weight), outlier) for index, weight in enumerate(weights)]
    return Cluster("svc", nodes, policy, outlier, nullcontext())


def sample_size(share: float, tolerance: float) -> int:
    """How many draws a share needs (gRPC's rule for its statistical tests)."""
    return math.ceil(share * (1 - share) * 25 / tolerance**2) + 1000


def within_3_sigma(count: int, of: int, share: float) -> bool:
    """Gateway API's band for weights."""
    return abs(count - of * share) <= 3 * math.sqrt(of * share * (1 - share))


class World:
    """Open-loop calls (Poisson, `rps`) over `size` endpoints whose answers are scripted, in virtual time."""

    def __init__(self, answer: Answer, *, size: int = 5, policy: BalancerName = "peak_ewma", seed: int) -> None:
        print(f"seed {seed}")
        self.runtime = SimulationRuntime(seed)
        self.cluster = cluster([1] * size, policy)
        self.answer, self.size = answer, size
        self.hits: list[tuple[float, int, int]] = []
        services: dict[Node, Service] = {n: self._leaf(index) for index, n in enumerate(self.cluster.nodes)}
        self.balance = Balance(self.cluster, services, FULL_ATTEMPT_S, self.runtime.now, self.runtime.rng)

    def run(self, seconds: float, rps: float = 200.0) -> None:
        """Let `seconds` pass, and everything begun in them end."""
        self.runtime.run(self._drive(seconds, rps))

    def share(self, index: int, begin: float, end: float) -> float:
        """The share of the calls begun in [begin, end) that endpoint `index` got."""
        hits = Counter(at for now, at, _ in self.hits if begin <= now < end)
        return hits[index] / hits.total()

    async def _drive(self, seconds: float, rps: float) -> None:
        runtime, calls = self.runtime, []
        end = runtime.now() + seconds
        while runtime.now() < end:
            calls.append(runtime.spawn(self.balance(Call("svc", "GET", b"/"))))
            await runtime.sleep(-math.log(1 - runtime.rng.random()) / rps)
        for call in calls:
            await call

    def _leaf(self, index: int) -> Service:
        async def answer(_call: Call) -> Reply:
            status, seconds = self.answer(index, self.runtime.now())
            self.hits.append((self.runtime.now(), index, status))
            await self.runtime.sleep(seconds * (0.9 + 0.2 * self.runtime.rng.random()))
            return Reply(status, [])

        return answer
