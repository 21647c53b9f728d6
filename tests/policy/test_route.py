"""Routing: which route takes a call, and which of its backends: by weight, or by what the call is hashed by."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter

import pytest

from meshlib.call import Call, Reply
from meshlib.policy.hash_key import HashKey
from meshlib.policy.hash_split import HashSplit
from meshlib.policy.match import Condition, Match
from meshlib.policy.predicate import Predicates
from meshlib.policy.retry import IDEMPOTENT_METHODS
from meshlib.policy.route import Distribute, Router, Split
from meshlib.policy.route_table import RouteTable

from .clusters import sample_size, within_3_sigma
from .requests import route

SEED = 99


@pytest.mark.parametrize("weights", [[90, 10], [1, 1, 1], [0, 5, 0, 5], [999, 1]])
def test_a_split_keeps_its_weights(weights):
    """Each backend gets its share within 3 σ; one with weight 0 gets nothing at all."""
    print(f"seed {SEED}")
    rng, total = random.Random(SEED), sum(weights)
    draws = sample_size(max(weights) / total, 0.01)
    split = Split(weights)
    found = Counter(split.draw(rng) for _ in range(draws))
    for index, weight in enumerate(weights):
        assert within_3_sigma(found[index], draws, weight / total)
        assert weight or not found[index]


@pytest.mark.parametrize("lowest", [0.0, 1.0 - 2.0**-53])
def test_a_split_at_the_ends_of_chance(lowest):
    """The lowest and the highest random number draw a backend that has a weight."""

    class Ends:
        def random(self) -> float:
            return lowest

    assert Split([0, 3, 2, 0]).draw(Ends()) == (1 if lowest == 0.0 else 2)


@pytest.mark.parametrize("weights", [[], [0], [0, 0]])
def test_a_split_needs_a_weight(weights):
    """Nobody to draw is a mistake at build time, not a crash per call."""
    with pytest.raises(ValueError, match="positive weight"):
        Split(weights)


def ask(routes, call, service=None):
    async def answer(_call):
        return Reply(200, [])

    router = Router(
        routes,
        RouteTable(routes, "me.default"),
        lambda _index: service or answer,
        IDEMPOTENT_METHODS,
        Predicates(pytest.fail),
        lambda _call: Reply(404, []),
    )
    return asyncio.run(router(call))


@pytest.mark.parametrize(
    ("method", "declared", "by_call", "idempotent"),
    [
        ("GET", None, None, True),
        ("POST", None, None, False),
        ("POST", True, None, True),
        ("GET", False, None, False),
        ("POST", True, False, False),
        ("POST", None, True, True),
    ],
)
def test_idempotency_is_the_calls_then_the_routes_then_the_methods(method, declared, by_call, idempotent):
    """call > route > RFC 9110."""
    call = Call("svc", method, b"/", idempotent=by_call)
    ask([dataclasses.replace(route("main"), idempotent=declared)], call)
    assert call.idempotent is idempotent
    assert (call.route.name, call.trail.route) == ("main", "main")


def test_no_route_is_an_answer_of_the_mesh():
    """404, and the trail says so; nothing is called."""
    call = Call("svc", "GET", b"/other", b"x-a: 1\r\n")
    assert ask([route("only", Match(prefix="/a"))], call).status == 404
    assert call.trail.notes == ["no route matches"]


def test_headers_are_read_from_the_rendered_lines():
    """By case-insensitive name, with several values."""
    beta = route("beta", Match(headers=(Condition("x-beta", "exact", "2"),)))
    call = Call("svc", "GET", b"/", b"X-Beta: 1\r\nx-BETA:2 \r\n")
    ask([beta, route("rest")], call)
    assert call.route.name == "beta"


def test_a_route_is_bound_when_it_is_first_taken():
    """Once, and only what is used: a policy may have thousands of routes."""
    made = []

    async def answer(_call):
        return Reply(200, [])

    def bind(index):
        made.append(index)
        return answer

    routes = [route("a", Match(prefix="/a")), route("b", Match(prefix="/b"))]
    table = RouteTable(routes, "me.default")
    router = Router(routes, table, bind, IDEMPOTENT_METHODS, Predicates(pytest.fail), lambda _call: Reply(404, []))
    for _ in range(3):
        asyncio.run(router(Call("svc", "GET", b"/b/1")))
    assert made == [1]


def test_a_hash_key_decides_in_the_place_of_chance():
    """The route's, or the one that the caller gave; without either a backend is drawn by its weight."""
    taken = []

    def service(name):
        async def answer(_call):
            taken.append(name)
            return Reply(200, [])

        return answer

    split = HashSplit([1, 1], ["a", "b"], "svc/main")
    by_header = Distribute(
        Split([1, 1]), split, HashKey("header", "x-user"), [service(0), service(1)], random.Random(SEED)
    )
    for user in ("ann", "bob", "eve"):
        for _ in range(5):
            asyncio.run(by_header(Call("svc", "GET", b"/", f"x-user: {user}\r\n".encode())))
        assert taken == [split.draw(user)] * 5
        taken.clear()
    for _ in range(5):
        asyncio.run(by_header(Call("svc", "GET", b"/", b"x-user: ann\r\n", hash_key="other")))
    assert taken == [split.draw("other")] * 5
    taken.clear()
    for _ in range(50):
        asyncio.run(by_header(Call("svc", "GET", b"/")))
    assert set(taken) == {0, 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (HashKey("header", "x-user"), "ann"),
        (HashKey("cookie", "sid"), "7"),
        (HashKey("query_param", "q"), "a b"),
        (HashKey("source", own="me.default"), "me.default"),
        (HashKey("header", "x-other"), None),
        (HashKey("cookie", "other"), None),
        (HashKey("query_param", "other"), None),
    ],
)
def test_what_a_call_is_hashed_by(key, value):
    """Each kind, there and missing."""
    call = Call("svc", "GET", b"/x?p=1&q=a+b", b"X-User: ann\r\nCookie: a=1; sid=7\r\n")
    assert key.of(call) == value
