"""F18, the retry storm, in virtual time: an outage of 30 s, one tier and three, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from meshlib.call import Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import MeshError
from meshlib.policy.balance import Balance, Cluster
from meshlib.policy.budget import TTL_S, RetryBudget
from meshlib.policy.deadline import Deadline
from meshlib.policy.limit import Limit
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy
from meshlib.policy.retry import NO_RETRY, Retry, RetryPolicy
from meshlib.runtime.simulation import SimulationRuntime
from meshlib.served import Served
from meshlib.stack import Layer, Service, Stack

RPS, OUTAGE_S, RECOVERY_S = 200.0, 30.0, 5.0
PERCENT, FLOOR_PER_S = 0.2, 10.0
SEEDS = [1, 2]


def destination(runtime: SimulationRuntime, leaf: Service, *, max_retries: int, endpoints: int = 3) -> Service:
    """deadline · limit · retry · balance over `endpoints` nodes that all are `leaf`, with the default budget."""
    lock, outlier = runtime.lock(), OutlierPolicy()
    nodes = [Node(Endpoint(f"n{index}", 80), outlier) for index in range(endpoints)]
    cluster = Cluster("svc", nodes, "peak_ewma", outlier, lock)
    retry = Retry(RetryPolicy(max_retries=max_retries), RetryBudget(PERCENT, FLOOR_PER_S), lock, runtime, lambda: 0.0)
    filters = {"deadline": Deadline(2.0, 30.0, runtime.now), "limit": Limit("svc", 1024, lock), "retry": retry}
    stack = Stack("test", tuple(Layer(role, lambda _, made=made: made, "") for role, made in filters.items()))
    return stack.bind(None, Balance(cluster, dict.fromkeys(nodes, leaf), 0.5, runtime.now, runtime.rng))


def tier(runtime: SimulationRuntime, below: Service) -> Service:
    """A server whose handler makes one call below, and answers as the server stack does."""

    async def serve(call: Call) -> Reply:
        served = Served(runtime.now, attempt=call.number, deadline=call.deadline)
        try:
            status = (await below(Call("svc", "GET", b"/", idempotent=True, served=served))).status
        except MeshError:
            status = 503
        return Reply(status, [(NO_RETRY, b"1")] if served.spent else [])

    return serve


class Storm:
    """`RPS` calls a second to `top`, while the bottom answers 503 for OUTAGE_S and then 200."""

    def __init__(self, seed: int, build: Callable[[SimulationRuntime, Service], Service]) -> None:
        print(f"seed {seed}")
        self.runtime = SimulationRuntime(seed)
        self.bottom: list[float] = []
        self.outcomes: list[tuple[float, bool]] = []
        self.top = build(self.runtime, self._backend)
        self.runtime.run(self._load(OUTAGE_S + 2 * RECOVERY_S))

    def amplification(self) -> float:
        """Attempts at the bottom per call at the top, during the outage."""
        calls = sum(begun < OUTAGE_S for begun, _ in self.outcomes)
        return sum(at < OUTAGE_S for at in self.bottom) / calls

    def success(self, begin: float, end: float) -> float:
        found = [ok for begun, ok in self.outcomes if begin <= begun < end]
        return sum(found) / len(found)

    async def _backend(self, _call: Call) -> Reply:
        self.bottom.append(self.runtime.now())
        status = 503 if self.runtime.now() < OUTAGE_S else 200
        await self.runtime.sleep(0.002 * (1 + self.runtime.rng.random()))
        return Reply(status, [])

    async def _load(self, seconds: float) -> None:
        tasks = []
        while self.runtime.now() < seconds:
            tasks.append(self.runtime.spawn(self._one()))
            await self.runtime.sleep(-math.log(1 - self.runtime.rng.random()) / RPS)
        for task in tasks:
            await task

    async def _one(self) -> None:
        begun = self.runtime.now()
        try:
            ok = (await self.top(Call("svc", "GET", b"/", idempotent=True))).status == 200
        except MeshError:
            ok = False
        self.outcomes.append((begun, ok))


ALLOWED = 1 + PERCENT + FLOOR_PER_S * (OUTAGE_S + TTL_S) / (RPS * OUTAGE_S)
"""1.2 × the calls and the floor, which a full window may spend at once."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("max_retries", [1, 3])
def test_an_outage_costs_the_budget_and_no_more(seed, max_retries):
    """Attempts / calls ≤ 1.2 + the floor, whatever the count; and it recovers: ≥ 99 % within 5 s."""
    storm = Storm(seed, lambda runtime, leaf: destination(runtime, leaf, max_retries=max_retries))
    print(f"amplification {storm.amplification():.3f}, allowed {ALLOWED:.3f}")
    assert 1.0 < storm.amplification() <= ALLOWED
    assert storm.success(0, OUTAGE_S - 1) == 0.0
    assert storm.success(OUTAGE_S + RECOVERY_S, OUTAGE_S + 2 * RECOVERY_S) >= 0.99


def test_without_a_budget_it_would_multiply():
    """What the test above would find if the budget were not asked: with 3 retries, close to 4 ×."""

    def build(runtime: SimulationRuntime, leaf: Service) -> Service:
        bound = destination(runtime, leaf, max_retries=3)
        retry = bound.keywords["service"].keywords["service"].func
        retry.budget = RetryBudget(1.0, 1000.0)
        return bound

    assert Storm(1, build).amplification() > 3.0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_chain_of_three_tiers_does_not_multiply(seed):
    """Three tiers that each may retry 3 times: ≤ 1.3 at the bottom, because the lowest tier says that it has."""

    def build(runtime: SimulationRuntime, leaf: Service) -> Service:
        service = leaf
        for _ in range(2):
            service = tier(runtime, destination(runtime, service, max_retries=3))
        return destination(runtime, service, max_retries=3)

    storm = Storm(seed, build)
    print(f"amplification at the bottom {storm.amplification():.3f}")
    assert storm.amplification() <= 1.3
    assert storm.success(OUTAGE_S + RECOVERY_S, OUTAGE_S + 2 * RECOVERY_S) >= 0.99
