"""Balancing: evenness, weights, exactness, who is passed over, what the end of an attempt teaches."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import nullcontext

import pytest

from meshlib.call import Attempt, Call, Reply
from meshlib.endpoint import Endpoint
from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, NoHealthyEndpoint, Rejected, TransportError
from meshlib.policy.balance import Balance, Cluster
from meshlib.policy.load import FAILURE_S
from meshlib.policy.node import Node
from meshlib.policy.outlier import OutlierPolicy

from .clusters import FULL_ATTEMPT_S, cluster, sample_size, within_3_sigma

SEED = 4711
POLICIES = ["peak_ewma", "least_request", "round_robin", "random"]


def rng() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


def counts(of: Cluster, picks: int, chance: random.Random, *, settled: bool = True) -> list[int]:
    """Picks per endpoint when every answer takes the same 10 ms and nothing overlaps."""
    found: Counter[str] = Counter()
    now = 0.0
    for _ in range(picks):
        node, _why = of.pick(now, chance)
        found[node.endpoint.host] += 1
        if settled:
            probe = node.begin(now)
            of.answered(node, 200, 0.01, now, chance, probe)
            of.released(node)
    return [found[node.endpoint.host] for node in of.nodes]


def shut(of: Cluster, *indexes: int) -> None:
    for index in indexes:
        of.nodes[index].unreachable(0.0, random.Random(1), 0, proof=True)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_endpoints_get_equal_shares(policy):
    """Finagle's P2CSuite: over 100 000 picks no endpoint is off its fair share by more than 5 %."""
    picks = 100_000
    assert all(abs(n - picks / 10) < 0.05 * picks / 10 for n in counts(cluster([1] * 10, policy), picks, rng()))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("weights", [[9, 1], [1, 2, 3, 4], [2, 2, 1, 1]])
def test_a_weight_is_a_share(policy, weights):
    """Each endpoint gets weight / sum of the weights, within 3 σ; also where two loads are compared."""
    total = sum(weights)
    picks = sample_size(min(weights) / total, 0.01)
    found = counts(cluster(weights, policy), picks, rng())
    assert all(within_3_sigma(n, picks, w / total) for n, w in zip(found, weights, strict=True)), found


@pytest.mark.parametrize("policy", ["peak_ewma", "least_request"])
def test_of_one_weight_the_less_loaded_is_taken(policy):
    """Two heavy endpoints share their part by load: the busy one is never preferred to the idle one."""
    of, chance = cluster([3, 3, 1], policy), rng()
    for node in of.nodes:
        node.succeeded(0.01, 0.0, 0)
    of.nodes[0].inflight = 5
    found = counts(of, 4000, chance, settled=False)
    assert found[0] == 0
    assert within_3_sigma(found[2], 4000, 1 / 7)


@pytest.mark.parametrize("weights", [[1, 1, 1], [3, 2, 1]])
def test_round_robin_is_exact(weights):
    """Over any whole number of rounds each endpoint has exactly its share, and it starts anywhere."""
    rounds = 7 * sum(weights)
    assert counts(cluster(weights, "round_robin"), rounds, rng()) == [7 * weight for weight in weights]
    firsts = {cluster([1] * 5, "round_robin").pick(0.0, random.Random(s))[0].endpoint.host for s in range(100)}
    assert len(firsts) == 5, "clients march together"


def test_round_robin_stays_exact_when_one_is_passed_over():
    """The turn of an unreachable endpoint goes to the next; the rest keep equal shares."""
    for missing in range(4):
        of = cluster([1, 1, 1, 1], "round_robin")
        shut(of, missing)
        found = counts(of, 300, rng())
        assert found.pop(missing) == 0
        assert found == [100, 100, 100]


def test_round_robin_by_weight_never_bursts():
    """Smooth weighted round robin (nginx): with 5:1:1 no endpoint is taken more often than the weights force."""
    of, chance = cluster([5, 1, 1], "round_robin"), rng()
    hosts = "".join(of.pick(0.0, chance)[0].endpoint.host[1] for _ in range(7))
    assert hosts in ("0012000", "0010200", "0102000", "0001200"), hosts
    assert hosts.count("0") == 5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [4, 3, 2, 1]])
def test_who_may_not_be_picked_is_passed_over(policy, weights):
    """Unreachable and ejected endpoints get nothing while their time is not over; the others get everything."""
    of, chance = cluster(weights, policy), rng()
    shut(of, 0)
    for _ in range(5):
        of.nodes[3].erred(0.0, chance, 0, may_eject=True)
    found = counts(of, 1000, chance)
    assert (found[0], found[3]) == (0, 0)
    assert min(found[1], found[2]) > 200


@pytest.mark.parametrize("policy", POLICIES)
def test_a_retry_prefers_what_was_not_tried(policy):
    """Envoy previous_hosts: each attempt goes elsewhere until all were tried, then anywhere again."""
    of, chance = cluster([1, 1, 2], policy), rng()
    for _ in range(50):
        tried: list[Attempt] = []
        for number in range(1, 5):
            node, why = of.pick(0.0, chance, tried)
            tried.append(Attempt(number, node.endpoint, why, 0.0))
        assert len({attempt.endpoint.address for attempt in tried[:3]}) == 3


def test_when_none_is_left_the_error_says_why_for_each():
    """NoHealthyEndpoint names every endpoint with its own reason, as data and in the message."""
    of, chance = cluster([1, 1]), rng()
    shut(of, 0)
    shut(of, 1)
    for _ in range(5):
        of.nodes[1].erred(0.0, chance, 0, may_eject=True)
    shut(of, 1)
    with pytest.raises(NoHealthyEndpoint) as caught:
        of.pick(0.1, chance)
    why = caught.value.why
    assert list(why) == ["n0:80", "n1:80"]
    assert why["n0:80"].startswith("cannot be connected to, next probe in 0.")
    assert why["n1:80"].startswith("cannot be connected to, next probe in 0.")
    assert all(f"{address}: {reason}" in str(caught.value) for address, reason in why.items())
    with pytest.raises(NoHealthyEndpoint, match="it has no endpoints"):
        cluster([]).pick(0.0, chance)


def test_one_that_answers_badly_is_better_than_none():
    """F08: the only reachable endpoint is not ejected; an ejected one is picked when the others cannot be reached."""
    of, chance = cluster([1, 1]), rng()
    shut(of, 0)
    for _ in range(10):
        of.answered(of.nodes[1], 503, 0.01, 0.05, chance, 0)
    assert of.pick(0.1, chance)[0] is of.nodes[1]
    assert of.nodes[1].ejection.until == 0.0, "the only reachable one was ejected"
    of = cluster([1, 1])
    for _ in range(5):
        of.answered(of.nodes[1], 503, 0.01, 0.0, chance, 0)
    assert of.nodes[1].ejection.until > 0.0
    shut(of, 0)
    assert of.pick(0.1, chance)[0] is of.nodes[1]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [1, 2]])
def test_every_pick_has_a_reason_in_words(policy, weights):
    """`why_picked` formats: for the first pick and for a retry."""
    of, chance = cluster(weights, policy), rng()
    node, why = of.pick(0.0, chance)
    first = Attempt(1, node.endpoint, why, 0.0)
    node, why = of.pick(0.0, chance, [first])
    sentences = [first.why_picked, Attempt(2, node.endpoint, why, 0.0).why_picked]
    assert all(sentence and "{" not in sentence for sentence in sentences), sentences


# What the end of an attempt teaches. (node after one failure of each kind)

SENT = {"phase": "read", "sent": True}


@pytest.mark.parametrize(
    ("error", "latency_s", "errors", "reachable", "load_s"),
    [
        (TransportError("reset", phase="read", cause="reset"), 0.001, 1, True, FAILURE_S),
        (TransportError("closed", phase="read", cause="closed"), 0.001, 1, True, FAILURE_S),
        (TransportError("garbage", phase="read", cause="protocol"), 0.001, 1, True, FAILURE_S),
        (TransportError("refused", phase="connect", cause="refused", sent=False), 0.001, 0, False, 0.0),
        (IdentityError("who?"), 0.001, 0, False, 0.0),
        (DeadlineExceeded("slow", **SENT), FULL_ATTEMPT_S, 1, True, FAILURE_S),
        (DeadlineExceeded("cut short", **SENT, total=True), 0.02, 0, True, 0.02),
        (DeadlineExceeded("no handshake", phase="connect", sent=False), 0.02, 0, True, 0.0),
        (DeadlineExceeded("pool", phase="pool", sent=False), 0.5, 0, True, 0.0),
        (TransportError("too large", phase="read", cause="too_large"), 0.001, 0, True, 0.0),
        (TransportError("ours", phase="write", cause="local", sent=False), 0.001, 0, True, 0.0),
        (TransportError("encoding", phase="read", cause="decode"), 0.001, 0, True, 0.0),
        (Rejected("faulted", "injected"), 0.001, 0, True, 0.0),
    ],
    ids=lambda value: str(value) if isinstance(value, MeshError) else None,
)
def test_what_a_failed_attempt_teaches(error, latency_s, errors, reachable, load_s):
    """Only what the endpoint did counts against it: not what was refused here, cut short by the caller, or ours."""
    of, chance = cluster(), rng()
    node = of.nodes[0]
    probe = node.begin(0.0)
    of.failed(node, error, latency_s, FULL_ATTEMPT_S, 0.0, chance, probe)
    assert node.inflight == 0
    assert node.ejection.failures == errors
    assert node.reach.admits(0.0) is reachable
    assert node.ewma.get_at(0.0) == pytest.approx(load_s)


def test_a_deadline_cut_short_never_makes_an_endpoint_look_faster():
    """Callers with 20 ms to spare: the endpoint takes at least that long, and whatever was known stays known."""
    of, chance = cluster(), rng()
    node = of.nodes[0]
    node.succeeded(0.3, 0.0, 0)
    node.begin(0.0)
    of.failed(node, DeadlineExceeded("cut", **SENT), 0.02, FULL_ATTEMPT_S, 0.0, chance, 0)
    assert node.ewma.get_at(0.0) == pytest.approx(0.3)


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (404, 0), (429, 0), (499, 0), (500, 1), (503, 1), (599, 1)])
def test_which_replies_count_as_errors(status, errors):
    """5xx does, 4xx does not."""
    of, chance = cluster(), rng()
    of.answered(of.nodes[0], status, 0.0001, 0.0, chance, of.nodes[0].begin(0.0))
    assert of.nodes[0].ejection.failures == errors


def test_failing_fast_is_not_being_fast():
    """A 503 in 0.1 ms weighs as a second, so the next comparison is lost to an endpoint that answers in 50 ms."""
    of, chance = cluster([1, 1]), rng()
    bad, good = of.nodes
    of.answered(bad, 503, 0.0001, 0.0, chance, 0)
    of.answered(good, 200, 0.05, 0.0, chance, 0)
    assert {of.pick(0.0, chance)[0] for _ in range(100)} == {good}


@pytest.mark.parametrize("size", range(1, 11))
def test_the_cap_holds_also_while_somebody_is_on_probation(size):
    """Every endpoint fails for ten minutes, probes included: never more than half is out, and one always stays."""
    of, chance = cluster([1] * size, outlier=OutlierPolicy(consecutive_errors=1, base_ejection_time_s=3.0)), rng()
    worst = 0
    for now in range(1, 600):
        for node in of.nodes:
            if node.admits(now):
                of.answered(node, 503, 0.01, float(now), chance, node.begin(now))
        worst = max(worst, sum(not node.admits(now) for node in of.nodes))
    assert worst == min(max(1, size // 2), size - 1)


def test_a_probe_that_is_out_still_counts_as_ejected():
    """The other one of two must not go while the first one's probe may still fail: nobody would be left."""
    of, chance = cluster([1, 1], outlier=OutlierPolicy(consecutive_errors=1, base_ejection_time_s=3.0)), rng()
    first, other = of.nodes
    of.answered(first, 503, 0.01, 0.0, chance, first.begin(0.0))
    probe = first.begin(5.0)
    of.answered(other, 503, 0.01, 5.0, chance, other.begin(5.0))
    of.answered(first, 503, 0.01, 5.0, chance, probe)
    assert (first.admits(5.0), other.admits(5.0)) == (False, True)


# The filter.


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Stream:
    async def read(self) -> bytes:
        return b""

    async def aclose(self) -> None:
        return None


@pytest.mark.parametrize("policy", POLICIES)
def test_a_session_goes_to_its_endpoint(policy):
    """Whatever the policy and the loads, while it may be picked and has not been tried; else the policy chooses."""
    of, chance = cluster([1, 5, 1], policy), rng()
    node = of.nodes[2]
    node.inflight = 1000
    for _ in range(20):
        assert of.pick(100.0, chance, (), node.key) == (node, ("its session's endpoint",))
    assert of.pick(100.0, chance, (), "0123456789abcdef")[1] != ("its session's endpoint",)
    tried = [Attempt(1, node.endpoint, ("x",), 0.0, node.key)]
    assert of.pick(100.0, chance, tried, node.key)[0] is not node
    node.unreachable(100.0, chance, 0, proof=True)
    assert of.pick(100.0, chance, (), node.key)[0] is not node


def balanced(service) -> tuple[Balance, Node, Clock]:
    of, clock = cluster([1]), Clock()
    return Balance(of, {of.nodes[0]: service}, FULL_ATTEMPT_S, clock, rng()), of.nodes[0], clock


def test_the_trail_has_the_attempt():
    """Endpoint, reason, times, status: written by the hinge."""

    async def service(_call):
        clock.now += 0.25
        return Reply(204, [])

    balance, node, clock = balanced(service)
    call = Call("svc", "GET", b"/")
    asyncio.run(balance(call))
    (attempt,) = call.trail
    assert (attempt.endpoint, attempt.status, attempt.started, attempt.ended) == (
        Endpoint("n0", 80),
        204,
        100.0,
        100.25,
    )
    assert attempt.why_picked == "the only endpoint left to pick"
    assert node.inflight == 0


def test_a_streamed_body_counts_until_it_ends():
    """In flight until the body is over, not until the head: at_end of the reply gives it back, once."""

    async def service(_call):
        return Reply(200, [], stream=Stream())

    balance, node, _ = balanced(service)
    reply = asyncio.run(balance(Call("svc", "GET", b"/")))
    assert node.inflight == 1
    reply.end()
    reply.end()
    assert node.inflight == 0


@pytest.mark.parametrize(
    "error", [TransportError("reset", phase="read", cause="reset"), ValueError("a bug"), KeyboardInterrupt()]
)
def test_every_way_out_gives_the_place_back(error):
    """A failure of ours, of a filter, and a cancellation all leave nothing in flight and end the attempt."""

    async def service(_call):
        raise error

    balance, node, _ = balanced(service)
    call = Call("svc", "GET", b"/")
    with pytest.raises(type(error)):
        asyncio.run(balance(call))
    assert node.inflight == 0
    assert call.trail.attempts[0].ended == 100.0
    assert call.trail.attempts[0].error is (error if isinstance(error, MeshError) else None)


def test_a_cancelled_probe_is_free_again():
    """The caller goes away while it is the probe: the next call may be it."""

    async def service(_call):
        raise asyncio.CancelledError

    balance, node, _ = balanced(service)
    node.unreachable(90.0, rng(), 0, proof=True)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(balance(Call("svc", "GET", b"/")))
    assert node.state(100.0) == "probation"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (1, 3, 1, 3)])
def test_a_later_priority_takes_what_no_earlier_one_can(policy, weights):
    """Two of priority 0, two of 1: the later ones are drawn from only while no earlier one may be picked."""
    outlier = OutlierPolicy()
    nodes = [Node(Endpoint(f"n{i}", 80, weight=weight, priority=i // 2), outlier) for i, weight in enumerate(weights)]
    made, chance = Cluster("svc", nodes, policy, outlier, nullcontext()), rng()
    assert {made.pick(0.0, chance)[0] for _ in range(200)} == set(nodes[:2])
    nodes[0].unreachable(0.0, chance, 0, proof=True, cause=None)
    assert {made.pick(0.0, chance)[0] for _ in range(50)} == {nodes[1]}
    nodes[1].unreachable(0.0, chance, 0, proof=True, cause=None)
    assert {made.pick(0.0, chance)[0] for _ in range(200)} == set(nodes[2:])


def test_a_retry_tries_a_later_priority_before_the_same_endpoint_again():
    """One that the call has not tried comes first, whatever its priority."""
    outlier = OutlierPolicy()
    nodes = [Node(Endpoint(f"n{i}", 80, priority=i), outlier) for i in range(2)]
    made, chance = Cluster("svc", nodes, "peak_ewma", outlier, nullcontext()), rng()
    tried = [Attempt(1, nodes[0].endpoint, (), 0.0, nodes[0].key)]
    assert made.pick(0.0, chance, tried)[0] is nodes[1]


def test_a_cluster_without_nodes_says_why():
    """What the sources of the service say."""
    made = Cluster("svc", (), "peak_ewma", OutlierPolicy(), nullcontext(), why_empty={"dns a.test": "SERVFAIL"})
    with pytest.raises(NoHealthyEndpoint, match=r"dns a\.test: SERVFAIL"):
        made.pick(0.0, rng())
