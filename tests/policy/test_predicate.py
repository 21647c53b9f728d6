"""Predicates: the application's own functions in a route."""

from __future__ import annotations

import pytest

from meshlib.policy import predicate as module
from meshlib.policy.match import Match
from meshlib.policy.predicate import Predicates

from .requests import request


def test_a_predicate_decides_with_the_rest_of_the_match():
    """It is asked with the request, and only when everything else matches."""
    asked = []
    predicates = Predicates(pytest.fail)
    predicates.register("is_beta", lambda seen: asked.append(seen.path) or seen.header("x-beta") == "1")
    match = Match(prefix="/a", predicate="is_beta")
    assert match.takes(request("GET", "/a", {"x-beta": ["1"]}, predicates=predicates))
    assert not match.takes(request("GET", "/a", predicates=predicates))
    assert not match.takes(request("GET", "/b", predicates=predicates))
    assert asked == ["/a", "/a"]


def test_one_that_is_missing_or_raises_takes_nothing_and_is_reported_once():
    """A call is never broken by it."""
    said = []
    predicates = Predicates(said.append)
    predicates.register("broken", lambda seen: seen.nothing)
    for _ in range(3):
        assert not predicates.holds("missing", request())
        assert not predicates.holds("broken", request())
    assert len(said) == 2
    assert "'missing', which is not registered" in said[0]
    assert "'broken' raised AttributeError" in said[1]


def test_a_name_has_one_function():
    """The same one again is the same; another is a mistake."""
    predicates = Predicates(pytest.fail)
    predicates.register("a", bool)
    predicates.register("a", bool)
    with pytest.raises(ValueError, match="a predicate 'a' already"):
        predicates.register("a", len)


def test_what_is_reported_is_bounded():
    """Names of a hostile policy do not fill the memory or the log."""
    said = []
    predicates = Predicates(said.append)
    for i in range(module.REPORTED_MAX + 5):
        predicates.holds(f"p{i}", request())
    assert len(said) == module.REPORTED_MAX
