"""The balancer in virtual time against the faults it is there for: a slow endpoint (F09), a fast failing one (F10)."""

from __future__ import annotations

import pytest

from .clusters import World

SEEDS = [1, 2, 3]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_endpoint_is_avoided_and_comes_back(seed):
    """F09: 1 of 5 is 100 × slower for 30 s. It gets ≤ 2 % from the 5th second, and ≥ 15 % 30 s after it recovered."""
    world = World(lambda index, now: (200, 0.5 if index == 0 and now < 30 else 0.005), seed=seed)
    world.run(70)
    assert world.share(0, 5, 30) <= 0.02
    assert world.share(0, 60, 70) >= 0.15


def test_round_robin_does_not_avoid_it():
    """The comparison that makes the test above mean something: without load the slow one keeps its fifth."""
    world = World(lambda index, _now: (200, 0.5 if index == 0 else 0.005), policy="round_robin", seed=1)
    world.run(10)
    assert world.share(0, 5, 10) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("policy", ["peak_ewma", "least_request"])
def test_a_fast_failing_endpoint_is_no_attractor(seed, policy):
    """F10: 1 of 5 answers 503 in 0.1 ms. ≤ 10 errors until it is ejected, ≤ 1 % of the calls afterwards."""
    world = World(lambda index, _now: (503, 0.0001) if index == 0 else (200, 0.005), policy=policy, seed=seed)
    world.run(20)
    errors = [now for now, _, status in world.hits if status == 503]
    assert 0 < sum(now < 5 for now in errors) <= 10
    assert world.share(0, 5, 20) <= 0.01


def test_of_two_bad_endpoints_one_stays_and_the_other_probes_alone():
    """Ejection leaves one; the ejected one is asked exactly once per probation."""
    world = World(lambda _index, _now: (503, 0.001), size=2, seed=5)
    world.run(100, rps=50)
    ejected = next(index for index, node in enumerate(world.cluster.nodes) if node.ejection.trips)
    later = [now for now, index, _ in world.hits if index == ejected and now > 5]
    assert 1 <= len(later) <= 3, later
