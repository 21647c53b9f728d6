"""Backoff: Envoy's vectors for the ceiling, the AWS property for the jitter."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from meshlib.policy.backoff import EXPONENT_MAX, backoff_s, ceiling_s, steady_s

SEED = 20240917


class Highest:
    def random(self) -> float:
        return 1.0 - 1e-9

    def getrandbits(self, k: int) -> int:
        return 2**k - 1


@pytest.mark.parametrize(("retry", "below_ms"), [(1, 25), (2, 75), (3, 175), (4, 250), (5, 250), (6, 250), (7, 250)])
def test_envoy_ceilings(retry: int, below_ms: float):
    """The n-th retry waits in [0, min((2ⁿ - 1) × 25 ms, 250 ms)), never the end itself."""
    assert ceiling_s(retry, 0.025, 0.25) * 1000 == pytest.approx(below_ms)
    assert 0.0 <= backoff_s(retry, 0.025, 0.25, Highest()) * 1000 < below_ms


@pytest.mark.parametrize(("retry", "about_ms"), [(1, 100), (2, 150), (3, 225), (4, 300), (10**9, 300)])
def test_a_steady_wait(retry: int, about_ms: float):
    """gRFC A6: base × multiplierⁿ⁻¹ up to the cap, less 20 % up to 20 % more."""
    assert 1000 * steady_s(retry, 0.1, 0.3, 1.5, Highest()) == pytest.approx(1.2 * about_ms)
    waits = [1000 * steady_s(retry, 0.1, 0.3, 1.5, random.Random(seed)) for seed in range(100)]
    assert 0.8 * about_ms <= min(waits) < 0.85 * about_ms


def test_the_exponent_is_bounded():
    """A retry number without meaning gives a finite wait."""
    assert ceiling_s(10**9, 1.0, 1e300) == 2.0**EXPONENT_MAX - 1


@pytest.mark.parametrize("retry", [1, 4, 30])
def test_clients_that_fail_together_do_not_return_together(retry: int):
    """AWS: of 1000 clients over a 1 s window no 10 ms bucket holds 3 times the mean; at the cap too (stamina's bug)."""
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    waits = [backoff_s(retry, 1.0, 1.0, rng) for _ in range(1000)]
    assert max(Counter(int(wait * 100) for wait in waits).values()) < 3 * 10
    assert 0.45 < sum(waits) / 1000 < 0.55
