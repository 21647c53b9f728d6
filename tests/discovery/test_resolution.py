"""Which DNS names are asked when, and what their answers mean; time is a number here."""

from __future__ import annotations

import random

import pytest

from meshlib.config.questions import Question
from meshlib.discovery.resolution import (
    ADDRESSES_MAX,
    JITTER,
    MISSING_KEPT_S,
    NEGATIVE_S,
    RETRY_MAX_S,
    TARGETS_MAX,
    TTL_MAX_S,
    TTL_MIN_S,
    Name,
    Resolution,
    Target,
)

ORDERS = Question("dns", "orders.internal", 8080)
HOST = Name("host", "orders.internal")
SRV = Question("srv", "_http._tcp.orders")
RECORDS = Name("srv", "_http._tcp.orders")


def following(*questions, now=0.0):
    """A resolution that follows these, and has asked for them once."""
    made = Resolution(random.Random(1))
    made.follow(questions, now)
    return made


def addresses(made, question, now):
    """host:port of each endpoint."""
    return [endpoint.address for endpoint in made.answers(now)[question].endpoints]


def test_a_question_is_unanswered_until_something_is_heard():
    """No answer is not an empty one."""
    made = following(ORDERS)
    assert made.due(0.0) == [HOST]
    assert made.due(0.0) == []  # it is being asked
    assert made.answers(0.0) == {}
    made.found(HOST, ("10.0.0.2", "10.0.0.1"), 30.0, 0.1)
    assert addresses(made, ORDERS, 0.1) == ["10.0.0.1:8080", "10.0.0.2:8080"]


@pytest.mark.parametrize(("ttl_s", "counts_as"), [(0.0, TTL_MIN_S), (30.0, 30.0), (1e9, TTL_MAX_S)])
def test_it_is_asked_again_after_its_ttl_and_never_before(ttl_s, counts_as):
    """One query per name and max(TTL, 1 s), a little later by chance."""
    for seed in range(50):
        made = Resolution(random.Random(seed))
        made.follow([ORDERS], 0.0)
        made.due(0.0)
        made.found(HOST, ("10.0.0.1",), ttl_s, 5.0)
        assert 5.0 + counts_as <= made.wake_at() <= 5.0 + counts_as * (1.0 + JITTER)
        assert made.due(5.0 + counts_as * 0.999) == []
        assert made.due(made.wake_at()) == [HOST]


def test_stale_beats_empty():
    """A failure keeps the last addresses for ever, and is tried again less and less often."""
    made, now = following(ORDERS), 0.0
    made.due(now)
    made.found(HOST, ("10.0.0.1",), 5.0, now)
    waits = []
    for _ in range(12):
        now = made.wake_at()
        assert made.due(now) == [HOST]
        made.failed(HOST, "SERVFAIL", now)
        assert addresses(made, ORDERS, now) == ["10.0.0.1:8080"]
        waits.append(made.wake_at() - now)
    assert 1.0 <= waits[0] < 1.2 < 2.0 <= waits[1] < 2.3
    assert RETRY_MAX_S <= waits[-1] <= RETRY_MAX_S * (1.0 + JITTER)
    now = made.wake_at()
    made.due(now)
    made.found(HOST, ("10.0.0.9",), 5.0, now)
    assert addresses(made, ORDERS, now) == ["10.0.0.9:8080"]


def test_a_failure_is_news_once():
    """So that a log has one line of it."""
    made = following(ORDERS)
    assert made.failed(HOST, "SERVFAIL", 0.0) is True
    assert made.failed(HOST, "SERVFAIL", 1.0) is False
    made.found(HOST, ("10.0.0.1",), 5.0, 2.0)
    assert made.failed(HOST, "SERVFAIL", 3.0) is True
    assert made.missing(HOST, 5.0, 4.0) is True
    assert made.missing(HOST, 5.0, 5.0) is False


def test_a_name_that_is_gone_keeps_its_addresses_for_a_minute():
    """NXDOMAIN may be a mistake of a moment; after a minute it is believed."""
    made = following(ORDERS)
    made.found(HOST, ("10.0.0.1",), 5.0, 0.0)
    made.missing(HOST, 300.0, 100.0)
    assert made.wake_at() <= 100.0 + NEGATIVE_S[1] * (1.0 + JITTER)
    made.missing(HOST, 300.0, 130.0)
    assert addresses(made, ORDERS, 100.0 + MISSING_KEPT_S - 0.01) == ["10.0.0.1:8080"]
    assert made.wake_at() <= 100.0 + MISSING_KEPT_S
    gone = made.answers(100.0 + MISSING_KEPT_S)[ORDERS]
    assert gone.endpoints == ()
    assert gone.missing
    assert gone.trouble == "there is no such name"


def test_a_name_that_comes_back_within_the_minute_was_never_gone():
    """The minute begins anew with the next time that it is missing."""
    made = following(ORDERS)
    made.found(HOST, ("10.0.0.1",), 5.0, 0.0)
    made.missing(HOST, 5.0, 10.0)
    made.found(HOST, ("10.0.0.1",), 5.0, 40.0)
    made.missing(HOST, 5.0, 60.0)
    assert addresses(made, ORDERS, 60.0 + MISSING_KEPT_S - 0.01) == ["10.0.0.1:8080"]


def test_a_name_that_never_was_is_missing_at_once():
    """There is nothing to keep."""
    made = following(ORDERS)
    made.missing(HOST, 0.0, 0.0)
    assert made.answers(0.0)[ORDERS].missing
    assert NEGATIVE_S[0] <= made.wake_at() <= NEGATIVE_S[0] * (1.0 + JITTER)


def test_a_name_server_that_rotates_its_answers_changes_nothing():
    """The order of an answer means nothing."""
    made = following(ORDERS)
    made.found(HOST, ("10.0.0.2", "10.0.0.1"), 5.0, 0.0)
    before = made.answers(0.0)
    made.found(HOST, ("10.0.0.1", "10.0.0.2"), 5.0, 6.0)
    assert made.answers(6.0) == before


def test_srv_targets_are_names_of_their_own():
    """Their addresses come by questions that follow from the answer, and go with it."""
    made = following(SRV)
    assert made.due(0.0) == [RECORDS]
    made.found(RECORDS, (Target(0, 5, 8080, "a.internal"), Target(1, 5, 8081, "b.internal")), 60.0, 0.0)
    assert made.answers(0.0) == {}  # no target has an address yet
    assert made.due(0.0) == [Name("host", "a.internal"), Name("host", "b.internal")]
    made.found(Name("host", "a.internal"), ("10.0.0.1",), 5.0, 0.1)
    made.failed(Name("host", "b.internal"), "SERVFAIL", 0.1)
    (only,) = made.answers(0.1)[SRV].endpoints
    assert (only.address, only.priority, only.weight) == ("10.0.0.1:8080", 0, 5)
    made.found(Name("host", "b.internal"), ("10.0.0.2",), 5.0, 1.0)
    assert [(each.address, each.priority) for each in made.answers(1.0)[SRV].endpoints] == [
        ("10.0.0.1:8080", 0),
        ("10.0.0.2:8081", 1),
    ]
    made.found(RECORDS, (Target(0, 5, 8080, "a.internal"),), 60.0, 70.0)
    assert addresses(made, SRV, 70.0) == ["10.0.0.1:8080"]
    assert Name("host", "b.internal") not in made.due(1e6)


def test_an_srv_target_may_be_an_address_or_localhost():
    """Nobody is asked for those."""
    made = following(SRV)
    made.found(RECORDS, (Target(0, 0, 80, "127.0.0.2"), Target(0, 0, 81, "localhost")), 60.0, 0.0)
    assert addresses(made, SRV, 0.0) == ["127.0.0.2:80", "127.0.0.1:81"]
    assert made.due(1.0) == [RECORDS] or made.due(1.0) == []


def test_srv_weights():
    """As they are; a zero beside others has a very small chance, zeros alone are equals."""
    for given, meant in (((10, 20), [10, 20]), ((0, 0), [1, 1]), ((0, 10), [1, 10_000])):
        made = following(SRV)
        made.found(RECORDS, tuple(Target(0, w, 80 + i, "127.0.0.1") for i, w in enumerate(given)), 60.0, 0.0)
        assert [endpoint.weight for endpoint in made.answers(0.0)[SRV].endpoints] == meant


def test_what_is_let_go_of_is_not_asked():
    """And what is followed by two is kept while one needs it."""
    other = Question("dns", "orders.internal", 9090)
    made = following(ORDERS, other)
    assert made.due(0.0) == [HOST]
    made.keep([other], 0.0)
    made.found(HOST, ("10.0.0.1",), 5.0, 0.0)
    assert set(made.answers(0.0)) == {other}
    made.keep([], 1.0)
    assert made.due(1e6) == []
    assert made.wake_at() == float("inf")
    made.found(HOST, ("10.0.0.1",), 5.0, 2.0)  # an answer that comes too late is nobody's
    assert made.answers(2.0) == {}


def test_bounds():
    """More addresses or targets than a name may have are not used."""
    made = following(ORDERS, SRV)
    made.found(HOST, tuple(f"10.0.{n // 256}.{n % 256}" for n in range(ADDRESSES_MAX + 1)), 5.0, 0.0)
    assert len(made.answers(0.0)[ORDERS].endpoints) == ADDRESSES_MAX
    made.found(RECORDS, tuple(Target(n, 0, 1 + n, "127.0.0.1") for n in range(TARGETS_MAX + 1)), 5.0, 0.0)
    found = made.answers(0.0)[SRV].endpoints
    assert len(found) == TARGETS_MAX
    assert max(endpoint.priority for endpoint in found) == TARGETS_MAX - 1
