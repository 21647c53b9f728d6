"""Routing: matching as tables, first match wins, splits by weight."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from meshlib.call import Call, Reply
from meshlib.policy.retry import IDEMPOTENT_METHODS
from meshlib.policy.route import Backend, HeaderMatch, Match, Route, Router, Split, first_match, path_of

from .clusters import sample_size, within_3_sigma

SEED = 99


def none(_name: str) -> list[str]:
    return []


def route(name: str, *matches: Match, idempotent: bool | None = None) -> Route:
    return Route(
        name=name,
        matches=matches,
        backends=(Backend(service="svc"),),
        idempotent=idempotent,
        timeout_s=1.0,
        stream_idle_timeout_s=30.0,
    )


@pytest.mark.parametrize(
    ("prefix", "path", "takes"),
    [
        ("/items", "/items", True),
        ("/items", "/items/", True),
        ("/items", "/items/7", True),
        ("/items", "/itemsize", False),
        ("/items", "/item", False),
        ("/items", "/Items", False),
        ("/items", "/x/items", False),
        ("/items/", "/items", True),
        ("/items/", "/items/7", True),
        ("/items/", "/itemsize", False),
        ("/a/b", "/a/b/c", True),
        ("/a/b", "/a/bc", False),
        ("/", "/", True),
        ("/", "/anything/at/all", True),
    ],
)
def test_a_prefix_is_whole_segments(prefix, path, takes):
    """Gateway API PathPrefix: element by element; a trailing slash of the prefix does not matter."""
    assert Match(prefix=prefix).takes("GET", path, none) is takes


@pytest.mark.parametrize(
    ("path", "takes"), [("/a", True), ("/a/", False), ("/a/b", False), ("/A", False), ("/", False)]
)
def test_exact_is_exact(path, takes):
    """Case and trailing slash count."""
    assert Match(exact="/a").takes("GET", path, none) is takes


@pytest.mark.parametrize(
    ("kind", "value", "values", "takes"),
    [
        ("exact", "1", ["1"], True),
        ("exact", "1", ["11"], False),
        ("exact", "1", ["0", "1"], True),
        ("exact", "", [""], True),
        ("exact", "1", [], False),
        ("prefix", "ab", ["abc"], True),
        ("prefix", "ab", ["cab"], False),
        ("prefix", "ab", [], False),
        ("suffix", "bc", ["abc"], True),
        ("suffix", "bc", ["bcd"], False),
        ("suffix", "bc", [], False),
        ("contains", "b", ["abc"], True),
        ("contains", "x", ["abc"], False),
        ("contains", "b", [], False),
        ("present", "", [""], True),
        ("present", "", [], False),
        ("absent", "", [], True),
        ("absent", "", [""], False),
    ],
)
def test_header_kinds(kind, value, values, takes):
    """Each kind, present and missing, with several values of one name."""
    assert HeaderMatch("x-a", kind, value).takes(values) is takes


def test_a_match_is_an_and_of_its_parts():
    """All of path, method and headers must hold."""
    match = Match(
        prefix="/a",
        methods=frozenset(("GET", "PUT")),
        headers=(HeaderMatch("x-a", "exact", "1"), HeaderMatch("x-b", "absent")),
    )
    fields = {"x-a": ["1"]}
    assert match.takes("PUT", "/a/b", lambda name: fields.get(name, []))
    assert not match.takes("POST", "/a/b", lambda name: fields.get(name, []))
    assert not match.takes("GET", "/b", lambda name: fields.get(name, []))
    assert not match.takes("GET", "/a", none)
    fields["x-b"] = [""]
    assert not match.takes("GET", "/a", lambda name: fields.get(name, []))


def test_the_first_route_that_matches_wins():
    """In the order of the list; any of a route's matches is enough; a route without matches takes everything."""
    routes = [
        route("beta", Match(exact="/x"), Match(prefix="/beta")),
        route("all-x", Match(prefix="/x")),
        route("rest"),
    ]
    asked = {"/x": 0, "/beta/1": 0, "/x/1": 1, "/y": 2}
    assert {path: first_match(routes, "GET", path, none) for path in asked} == asked
    assert first_match(routes[:2], "GET", "/y", none) is None
    assert first_match([], "GET", "/", none) is None


@pytest.mark.parametrize(
    ("target", "path"), [(b"/a?b=/c", "/a"), (b"/a", "/a"), (b"/?", "/"), (b"/%2e/a", "/%2e/a"), (b"/a?b?c", "/a")]
)
def test_the_path_is_as_sent_without_its_query(target, path):
    """Nothing is decoded."""
    assert path_of(target) == path


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


def ask(routes, call, services=None):
    async def answer(_call):
        return Reply(200, [])

    bound = [(Split([1]), services or [answer]) for _ in routes]
    router = Router(routes, bound, IDEMPOTENT_METHODS, random.Random(1), lambda _call: Reply(404, []))
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
    ask([route("main", idempotent=declared)], call)
    assert call.idempotent is idempotent
    assert (call.route.name, call.trail.route) == ("main", "main")


def test_no_route_is_an_answer_of_the_mesh():
    """404, and the trail says so; nothing is called."""
    call = Call("svc", "GET", b"/other", b"x-a: 1\r\n")
    assert ask([route("only", Match(prefix="/a"))], call).status == 404
    assert call.trail.notes == ["no route matches"]


def test_headers_are_read_from_the_rendered_lines():
    """By case-insensitive name, with several values."""
    beta = route("beta", Match(headers=(HeaderMatch("x-beta", "exact", "2"),)))
    call = Call("svc", "GET", b"/", b"X-Beta: 1\r\nx-BETA:2 \r\n")
    ask([beta, route("rest")], call)
    assert call.route.name == "beta"
