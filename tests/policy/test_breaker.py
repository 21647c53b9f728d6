"""The breaker against linkerd's vectors, and what it does at its bounds."""

from __future__ import annotations

import random

import pytest

from meshlib.policy.breaker import ABSENT, DOUBLINGS_MAX, REACHABILITY, Breaker, BreakerPolicy

RNG = random.Random(1)


def plain(max_failures: int = 2, **more: float) -> Breaker:
    return Breaker(BreakerPolicy(max_failures=max_failures, base_s=1.0, max_s=100.0, **more))


def test_consecutive_failures_shut_it_and_each_failed_probe_waits_twice_as_long():
    """linkerd consecutive_failures.rs: 2 failures shut it for 1 s, a failed probe for 2 s, a good probe opens it."""
    breaker = plain()
    assert breaker.failed(0.0, RNG, probe=False) is False
    assert breaker.state(0.0) == "open-for-traffic"
    assert breaker.failed(0.0, RNG, probe=False) is True
    assert breaker.state(0.5) == "shut"
    assert breaker.state(1.0) == "probation"
    assert breaker.begin(1.0)
    assert breaker.failed(1.0, RNG, probe=True)
    assert breaker.state(2.0) == "shut"
    breaker.succeeded(probe=False)
    assert breaker.state(2.0) == "shut", "a straggler's success was believed"
    assert breaker.state(3.0) == "probation"
    assert breaker.begin(3.0)
    breaker.succeeded(probe=True)
    assert breaker.state(3.0) == "open-for-traffic"


def test_a_success_resets_the_count():
    """linkerd open(): fail, fail, success, fail, fail of 3 leaves it open for traffic."""
    breaker = plain(3)
    for failed in (True, True, False, True, True):
        if failed:
            breaker.failed(0.0, RNG, probe=False)
        else:
            breaker.succeeded(probe=False)
    assert breaker.state(0.0) == "open-for-traffic"
    assert breaker.failed(0.0, RNG, probe=False), "the third in a row did not shut it"


def test_probation_lets_exactly_one_through():
    """While the probe is out nobody else is admitted; asking changes nothing."""
    breaker = plain(1)
    breaker.failed(0.0, RNG, probe=False)
    assert not breaker.admits(0.999)
    assert not breaker.begin(0.999)
    assert all(breaker.admits(1.0) for _ in range(3))
    assert breaker.begin(1.0)
    assert not breaker.admits(1.0)
    assert not breaker.begin(1.0)


def test_an_abandoned_probe_gives_its_permit_back():
    """A cancelled probe says nothing: the next request is the probe, and the wait is not longer."""
    breaker = plain(1)
    breaker.failed(0.0, RNG, probe=False)
    assert breaker.begin(1.0)
    breaker.abandoned(probe=False)
    assert not breaker.admits(1.0), "somebody else's cancellation freed the probe's permit"
    breaker.abandoned(probe=True)
    assert breaker.begin(1.0)
    assert breaker.trips == 1


def test_stragglers_do_not_lengthen_the_wait():
    """Failures that arrive while it is shut were sent before: not a trip."""
    breaker = plain(1)
    breaker.failed(0.0, RNG, probe=False)
    assert not any(breaker.failed(0.5, RNG, probe=False) for _ in range(10))
    assert (breaker.trips, breaker.until) == (1, 1.0)


def test_weight_counts_one_failure_as_many():
    """A refused connection is proof: with the weight of all failures, one shuts it."""
    assert plain(5).failed(0.0, RNG, probe=False, weight=5)
    assert not plain(5).failed(0.0, RNG, probe=False, weight=4)


@pytest.mark.parametrize(("doubling", "waits"), [(True, [1, 2, 4, 8, 10, 10]), (False, [1, 2, 3, 4, 5, 6])])
def test_the_wait_grows_up_to_its_maximum(doubling: bool, waits: list[float]):
    """Doubling for reachability, linear for ejection (Envoy), never beyond `max_s`."""
    policy = BreakerPolicy(max_failures=1, base_s=1.0, max_s=10.0, doubling=doubling)
    assert [policy.wait_s(trips, RNG) for trips in range(1, 7)] == waits
    assert policy.wait_s(10**6, RNG) == 10.0


def test_the_exponent_is_bounded():
    """After any number of trips the wait is a finite float."""
    policy = BreakerPolicy(max_failures=1, base_s=1.0, max_s=1e300)
    assert policy.wait_s(10**9, RNG) == 2.0**DOUBLINGS_MAX


def test_jitter_only_lengthens_and_spreads():
    """A wait lies in [w, w × (1 + jitter)) and differs between clients."""
    waits = [REACHABILITY.wait_s(1, random.Random(seed)) for seed in range(200)]
    assert all(0.2 <= wait < 0.24 for wait in waits)
    assert len(set(waits)) == 200


def test_reachability_probes_often_enough_for_its_promise():
    """The longest wait, jitter included, stays below the 2 s in which a returned endpoint is found again."""
    assert REACHABILITY.max_s * (1 + REACHABILITY.jitter) < 2.0


def test_a_success_forgets_the_trips():
    """After it opened, the next trip waits the shortest time again."""
    breaker = plain(1)
    for now in (0.0, 10.0, 20.0):
        breaker.failed(now, RNG, probe=breaker.begin(now))
    assert breaker.trips == 3
    breaker.begin(100.0)
    breaker.succeeded(probe=True)
    breaker.failed(200.0, RNG, probe=False)
    assert breaker.until == 201.0


def test_an_absent_endpoint_waits_from_two_seconds_to_thirty():
    """One failure shuts it; the waits double from 2 s to 30 s, each longer by up to a fifth."""
    breaker = Breaker(ABSENT)
    assert breaker.failed(0.0, RNG, probe=False)
    for trips, wait in enumerate([2, 4, 8, 16, 30, 30], 1):
        assert wait <= ABSENT.wait_s(trips, RNG) < wait * 1.2


def test_news_makes_the_probe_due():
    """Shut, the next probe may begin at any time from now on and its failure waits the shortest; open, nothing changes."""
    breaker = plain(1)
    breaker.due()
    assert breaker.state(0.0) == "open-for-traffic"
    for now in (0.0, 10.0, 20.0):
        breaker.failed(now, RNG, probe=breaker.begin(now))
    assert breaker.state(20.0) == "shut"
    breaker.due()
    assert breaker.state(0.0) == "probation"
    assert breaker.begin(20.0)
    assert not breaker.begin(20.0), "a second probe went out"
    breaker.failed(20.0, RNG, probe=True)
    assert breaker.until == 21.0


def test_news_while_a_probe_is_out():
    """It does not let a second one go; the end of the first decides."""
    breaker = plain(1)
    breaker.failed(0.0, RNG, probe=False)
    assert breaker.begin(1.0)
    breaker.due()
    assert not breaker.begin(1.0)
    breaker.succeeded(probe=True)
    assert breaker.state(1.0) == "open-for-traffic"
