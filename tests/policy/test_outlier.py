"""Outlier ejection: the cap as a table, and the wait of Envoy."""

from __future__ import annotations

import random

import pytest

from meshlib.policy.outlier import EJECTION_TIME_MAX_S, OutlierPolicy


@pytest.mark.parametrize(
    ("total", "at_most"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (8, 4), (9, 4), (10, 5)]
)
def test_at_most_half_goes(total: int, at_most: int):
    """The default cap: half, rounded down, but at least one may go and at least one stays."""
    policy = OutlierPolicy()
    ejected = 0
    while policy.may_eject(ejected, total):
        ejected += 1
    assert ejected == at_most


@pytest.mark.parametrize(
    ("share", "at_most"), [(0.01, [0, 1, 1, 1, 1, 1, 1, 1, 1, 1]), (1.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])]
)
def test_other_shares(share: float, at_most: list[int]):
    """A tiny share lets one go, a share of all leaves one; for 1 to 10 endpoints."""
    policy = OutlierPolicy(max_ejection_share=share)
    for total, expected in enumerate(at_most, start=1):
        assert sum(policy.may_eject(ejected, total) for ejected in range(total)) == expected


def test_each_ejection_in_a_row_is_longer():
    """Envoy: base × times ejected, at most 300 s, or the base where that is longer."""
    rng = random.Random(1)
    waits = [OutlierPolicy().breaker().wait_s(times, rng) for times in (1, 2, 3, 10, 11, 1000)]
    assert waits == [30.0, 60.0, 90.0, EJECTION_TIME_MAX_S, EJECTION_TIME_MAX_S, EJECTION_TIME_MAX_S]
    assert OutlierPolicy(base_ejection_time_s=600.0).breaker().wait_s(1, rng) == 600.0
