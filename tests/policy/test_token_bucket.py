"""The token bucket: a burst, then a rate; the same in any order of looks."""

from __future__ import annotations

import pytest

from meshlib.policy.token_bucket import TokenBucket


def test_a_burst_then_the_rate() -> None:
    """Full at first; empty after the burst; one more every 1/rate seconds."""
    bucket = TokenBucket(rate=2.0, burst=3)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.ready_at(10.0) == pytest.approx(10.5)
    assert not bucket.take(10.49)
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_it_never_holds_more_than_the_burst() -> None:
    """An hour of rest is worth one burst."""
    bucket = TokenBucket(rate=100.0, burst=2)
    bucket.take(0.0)
    assert [bucket.take(3600.0) for _ in range(3)] == [True, True, False]


def test_looking_takes_nothing() -> None:
    """`ready_at` changes nothing, however often it is asked."""
    bucket = TokenBucket(rate=1.0, burst=1)
    for _ in range(5):
        assert bucket.ready_at(0.0) == 0.0
    assert bucket.take(0.0)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.5)])
def test_a_bucket_that_never_gives_is_refused(rate: float, burst: float) -> None:
    """At construction, with a sentence."""
    with pytest.raises(ValueError, match="token bucket"):
        TokenBucket(rate, burst)
