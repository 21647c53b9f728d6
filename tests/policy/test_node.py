"""A node: two breakers and a load, told by the end of each request."""

from __future__ import annotations

import random

import pytest

from meshlib.endpoint import Endpoint
from meshlib.policy.load import UNKNOWN_COST
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy
from meshlib.policy.session_persistence import endpoint_key

RNG = random.Random(7)
OUTLIER = OutlierPolicy(consecutive_errors=2, base_ejection_time_s=10.0)


def fresh() -> Node:
    return Node(Endpoint("10.0.0.1", 80), OUTLIER)


def ejected(at: float = 0.0) -> Node:
    node = fresh()
    node.erred(at, RNG, 0, may_eject=True)
    assert node.erred(at, RNG, 0, may_eject=True)
    return node


def test_one_refused_connection_makes_it_unreachable():
    """`proof` shuts it at once, a connect timeout only counts as one of five."""
    node = fresh()
    node.unreachable(0.0, RNG, 0, proof=True)
    assert (node.admits(0.1), node.state(0.1)) == (False, "unreachable")
    assert "cannot be connected to, next probe in" in node.why_not(0.1)
    node = fresh()
    for _ in range(4):
        node.unreachable(0.0, RNG, 0, proof=False)
    assert node.state(0.0) == "ready"
    node.unreachable(0.0, RNG, 0, proof=False)
    assert node.state(0.0) == "unreachable"


def test_errors_in_a_row_eject_it_only_where_it_may():
    """At the cap an error is not counted, so it cannot be ejected later for what was excused."""
    node = fresh()
    assert not any(node.erred(0.0, RNG, 0, may_eject=False) for _ in range(10))
    assert node.state(0.0) == "ready"
    assert not node.erred(0.0, RNG, 0, may_eject=True)
    assert node.erred(0.0, RNG, 0, may_eject=True)
    assert node.state(0.0) == "ejected"
    assert "ejected for its errors, next probe in 10.0 s" in node.why_not(0.0)


def test_a_success_between_errors_resets_the_count():
    """Consecutive means consecutive."""
    node = fresh()
    for _ in range(5):
        node.erred(0.0, RNG, 0, may_eject=True)
        node.succeeded(0.01, 0.0, 0)
    assert node.state(0.0) == "ready"


def test_the_probe_decides():
    """After the ejection one request goes through, and its end alone opens or shuts it."""
    node = ejected()
    assert node.state(10.0) == "probation"
    probe = node.begin(10.0)
    assert probe
    assert (node.admits(10.0), node.why_not(10.0)) == (False, "ejected for its errors, a probe is under way")
    node.succeeded(0.01, 10.0, 0)
    assert not node.admits(10.0), "an answer to an older request was taken for the probe's"
    node.succeeded(0.01, 10.0, probe)
    assert (node.state(10.0), node.why_not(10.0)) == ("ready", "")


def test_a_failed_probe_ejects_again_also_at_the_cap():
    """It is already counted as ejected, so the cap does not protect it."""
    node = ejected()
    assert node.erred(10.0, RNG, node.begin(10.0), may_eject=False)
    assert node.ejection.until == 30.0


def test_one_request_can_be_the_probe_of_both():
    """Unreachable and ejected at once: one request answers both questions, each by its own evidence."""
    node = ejected()
    node.unreachable(0.0, RNG, 0, proof=True)
    probe = node.begin(20.0)
    assert probe == 3
    node.erred(20.0, RNG, probe, may_eject=True)
    assert node.reach.until == 0.0, "it answered, so it can be reached"
    assert node.ejection.until > 20.0


def test_an_unreachable_probe_gives_the_ejection_its_permit_back():
    """Not being connected says nothing about how it answers."""
    node = ejected()
    node.unreachable(0.0, RNG, 0, proof=True)
    node.unreachable(20.0, RNG, node.begin(20.0), proof=True)
    assert node.ejection.admits(20.0)
    assert not node.reach.admits(20.0)


def test_an_abandoned_probe_frees_both():
    """A cancelled request leaves no permit behind."""
    node = ejected()
    node.abandoned(node.begin(10.0))
    assert node.begin(10.0)


def test_load_counts_what_is_in_flight():
    """Latency × (in flight + 1); an endpoint never asked is worth exactly one question at a time."""
    node = fresh()
    assert node.load(0.0) == 0.0
    node.begin(0.0)
    assert node.load(0.0) > UNKNOWN_COST
    node.succeeded(0.1, 1.0, 0)
    assert node.load(1.0) == pytest.approx(0.2)


def test_what_was_learned_survives_an_update():
    """A new policy or weight changes neither breakers nor load."""
    node = ejected()
    same = node.updated(Endpoint("10.0.0.1", 80, weight=3), OutlierPolicy(consecutive_errors=9))
    assert same is node
    assert (node.endpoint.weight, node.ejection.policy.max_failures, node.state(0.0)) == (3, 9, "ejected")


ABSENT_ENDPOINT = Endpoint("10.0.0.1", 80, absent=True)


def test_one_failure_of_an_absent_endpoint_is_believed():
    """While its lease has ended a connect timeout alone shuts it, for 2 s and more; as long as it answers it is used."""
    node = Node(ABSENT_ENDPOINT, OUTLIER)
    node.succeeded(0.01, 0.0, node.begin(0.0))
    assert node.state(0.0) == "ready"
    node.unreachable(0.0, RNG, 0, proof=False)
    assert (node.state(1.99), node.state(2.4)) == ("unreachable", "probation")


def test_a_node_becomes_absent():
    """From the update on the policy of absent endpoints holds; what it has failed before counts."""
    node = fresh()
    node.unreachable(0.0, RNG, 0, proof=False)
    assert node.updated(ABSENT_ENDPOINT, OUTLIER) is node
    assert node.state(0.0) == "ready"
    node.unreachable(0.0, RNG, 0, proof=False)
    assert node.state(1.9) == "unreachable"


def test_a_node_whose_lease_is_back_is_probed_at_once():
    """The wait of an absent endpoint, up to 30 s, ends with the news that it is there; the next wait is short again."""
    node = Node(ABSENT_ENDPOINT, OUTLIER)
    for now in (0.0, 100.0, 200.0):
        node.unreachable(now, RNG, node.begin(now), proof=True)
    assert node.state(205.0) == "unreachable"
    node.updated(Endpoint("10.0.0.1", 80), OUTLIER)
    assert node.state(201.0) == "probation"
    probe = node.begin(201.0)
    assert node.why_not(201.0) == "cannot be connected to, a probe is under way"
    node.unreachable(201.0, RNG, probe, proof=True)
    assert node.state(201.3) == "probation"


def test_an_update_that_brings_no_lease_back_keeps_the_wait():
    """An endpoint that stays absent, or was never, waits out what it has to."""
    for endpoint in (ABSENT_ENDPOINT, Endpoint("10.0.0.1", 80)):
        node = Node(endpoint, OUTLIER)
        node.unreachable(0.0, RNG, 0, proof=True)
        node.updated(endpoint, OUTLIER)
        assert node.state(0.1) == "unreachable"


def test_a_session_knows_it_by_a_key():
    """Of service and address; an update of the endpoint does not change it."""
    node = Node(Endpoint("10.0.0.1", 80), OUTLIER, "inventory.default")
    key = node.key
    assert key == endpoint_key("inventory.default", "10.0.0.1:80")
    assert node.updated(Endpoint("10.0.0.1", 80, weight=3), OUTLIER).key == key
    assert Node(Endpoint("10.0.0.1", 80), OUTLIER, "orders.default").key != key
