"""Matches: each part of a request, as tables."""

from __future__ import annotations

import pytest

from meshlib.pattern import compiled
from meshlib.policy.match import Condition, Match, host_takes

from .requests import request


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
    assert Match(prefix=prefix).takes(request("GET", path)) is takes


@pytest.mark.parametrize(
    ("path", "takes"), [("/a", True), ("/a/", False), ("/a/b", False), ("/A", False), ("/", False)]
)
def test_exact_is_exact(path, takes):
    """Case and trailing slash count."""
    assert Match(exact="/a").takes(request("GET", path)) is takes


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
    assert Condition("x-a", kind, value).takes(values) is takes


def test_a_match_is_an_and_of_its_parts():
    """All of path, method and headers must hold."""
    match = Match(
        prefix="/a",
        methods=frozenset(("GET", "PUT")),
        headers=(Condition("x-a", "exact", "1"), Condition("x-b", "absent")),
    )
    fields = {"x-a": ["1"]}
    assert match.takes(request("PUT", "/a/b", fields))
    assert not match.takes(request("POST", "/a/b", fields))
    assert not match.takes(request("GET", "/b", fields))
    assert not match.takes(request("GET", "/a"))
    assert not match.takes(request("GET", "/a", {**fields, "x-b": [""]}))


@pytest.mark.parametrize(
    ("query", "takes"),
    [("q=a", True), ("x=1&q=a", True), ("q=b&q=a", True), ("q=A", False), ("", False), ("q", False), ("q=%61", True)],
)
def test_query_parameters(query, takes):
    """By name, decoded; any of several values of one name passes."""
    assert Match(query=(Condition("q", "exact", "a"),)).takes(request("GET", f"/?{query}")) is takes


def test_a_pattern_takes_the_whole_path():
    """Of the path and of values; the query is not part of a path."""
    match = Match(pattern=compiled("/items/[0-9]+"), headers=(Condition("x-a", "pattern", pattern=compiled("v[12]")),))
    assert match.takes(request("GET", "/items/7?x=/y", {"x-a": ["v3", "v2"]}))
    assert not match.takes(request("GET", "/items/7/x", {"x-a": ["v2"]}))
    assert not match.takes(request("GET", "/items/7", {"x-a": ["v22"]}))


@pytest.mark.parametrize(
    ("hostname", "host", "takes"),
    [
        ("a.example", "a.example", True),
        ("a.example", "b.a.example", False),
        ("*.example", "a.example", True),
        ("*.example", "b.a.example", True),
        ("*.example", "example", False),
        ("*.example", "aexample", False),
    ],
)
def test_hostnames(hostname, host, takes):
    """A wildcard takes every name below it (Gateway API)."""
    assert host_takes(hostname, host) is takes


def test_a_grpc_method_of_any_service():
    """`suffix` is the method of whichever service."""
    assert Match(suffix="/Reserve").takes(request("POST", "/shop.Inventory/Reserve"))
    assert not Match(suffix="/Reserve").takes(request("POST", "/shop.Inventory/PreReserve"))
