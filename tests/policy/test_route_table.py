"""The route table: it finds what asking every route in order finds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.pattern import compiled
from meshlib.policy.match import Condition, Match, host_takes
from meshlib.policy.route_table import Found, RouteTable

from .requests import request, route

CALLER = "orders.default"


def in_order(routes, asked):
    """The specification: every route, every match, in order."""
    for index, each in enumerate(routes):
        if each.listeners and asked.listener not in each.listeners:
            continue
        if each.hostnames and not any(host_takes(hostname, asked.host) for hostname in each.hostnames):
            continue
        for match in each.matches or (Match(),):
            if (match.callers is None or CALLER in match.callers) and match.takes(asked):
                return Found(index, match.prefix or "")
    return None


def find(routes, asked):
    return RouteTable(routes, CALLER).find(asked)


def test_the_first_route_that_matches_wins():
    """In the order of the list; any of a route's matches is enough; a route without matches takes everything."""
    routes = [
        route("beta", Match(exact="/x"), Match(prefix="/beta")),
        route("all-x", Match(prefix="/x")),
        route("rest"),
    ]
    asked = {"/x": 0, "/beta/1": 0, "/x/1": 1, "/y": 2}
    assert {path: find(routes, request("GET", path)).route for path in asked} == asked
    assert find(routes, request("GET", "/beta/1")).prefix == "/beta"
    assert find(routes[:2], request("GET", "/y")) is None
    assert find([], request("GET", "/")) is None


def test_matches_for_other_callers_are_not_there():
    """A match of another caller takes nothing, and a route with no other match is not one that takes everything."""
    routes = [
        route("theirs", Match(callers=frozenset(("web.default",)))),
        route("ours", Match(prefix="/a", callers=frozenset((CALLER,)))),
    ]
    assert find(routes, request("GET", "/a")).route == 1
    assert find(routes, request("GET", "/b")) is None


def test_listeners():
    """A route of one listener is not reached through another."""
    routes = [route("admin", listeners=("internal",)), route("rest")]
    assert find(routes, request(listener="internal")).route == 0
    assert find(routes, request(listener="web")).route == 1


def test_a_single_route_that_takes_everything_needs_no_request():
    """`always` says so, and only then."""
    assert RouteTable([route("all")], CALLER).always
    for other in (route("a", Match(prefix="/a")), route("a", hostnames=("a.example",)), route("a", listeners=("web",))):
        assert not RouteTable([other], CALLER).always
    assert not RouteTable([], CALLER).always


segments = st.sampled_from(["a", "b", "ab", ""])
paths = st.lists(segments, max_size=3).map(lambda parts: "/" + "/".join(parts))
hosts = st.sampled_from(["a.example", "b.a.example", "example", "x.b.a.example", "other"])
hostnames = st.sampled_from(["a.example", "*.example", "*.a.example", "other"])
values = st.sampled_from(["1", "2", "12"])
conditions = st.one_of(
    st.builds(
        Condition, st.sampled_from(["x", "y"]), st.sampled_from(["exact", "prefix", "suffix", "contains"]), values
    ),
    st.builds(Condition, st.sampled_from(["x", "y"]), st.sampled_from(["present", "absent"])),
)
paths_of_matches = st.one_of(
    st.just({}),
    paths.map(lambda path: {"exact": path}),
    paths.map(lambda path: {"prefix": path}),
    st.just({"pattern": compiled("/a.*")}),
)
matches = st.builds(
    lambda path, methods, headers, query, callers: Match(
        **path, methods=methods, headers=headers, query=query, callers=callers
    ),
    paths_of_matches,
    st.one_of(st.none(), st.frozensets(st.sampled_from(["GET", "POST"]), min_size=1)),
    st.lists(conditions, max_size=2).map(tuple),
    st.lists(conditions, max_size=2).map(tuple),
    st.sampled_from([None, frozenset((CALLER,)), frozenset(("web.default",))]),
)
routes_of_tables = st.lists(
    st.builds(
        lambda found, names, listeners: route("r", *found, hostnames=tuple(names), listeners=tuple(listeners)),
        st.lists(matches, max_size=3),
        st.lists(hostnames, max_size=2),
        st.lists(st.sampled_from(["web", "internal"]), max_size=1),
    ),
    max_size=8,
)
requests = st.builds(
    lambda method, path, query, fields, host, listener: request(
        method, path + query, {**fields, "host": [host]}, listener=listener
    ),
    st.sampled_from(["GET", "POST"]),
    paths,
    st.sampled_from(["", "?x=1", "?x=2&y=1", "?x=12&x=1"]),
    st.dictionaries(st.sampled_from(["x", "y"]), st.lists(values, min_size=1, max_size=2)),
    hosts,
    st.sampled_from(["web", "internal"]),
)


@settings(max_examples=500, deadline=None)
@given(routes_of_tables, requests)
def test_it_answers_as_asking_every_route_would(routes, asked):
    """Whatever the shapes: hosts, paths, methods, headers, parameters, callers, listeners."""
    assert find(routes, asked) == in_order(routes, asked)


def test_a_lookup_asks_few_routes_of_many():
    """10,000 routes of one shape: one is asked, wherever it stands."""
    asked = []

    class Counting(Match):
        def takes(self, request):
            asked.append(self.prefix)
            return Match.takes(self, request)

    table = RouteTable([route(f"r{i}", Counting(prefix=f"/s{i}/items")) for i in range(10_000)], CALLER)
    for place in (0, 5_000, 9_999):
        assert table.find(request("GET", f"/s{place}/items/7?x=1")).route == place
    assert asked == ["/s0/items", "/s5000/items", "/s9999/items"]
