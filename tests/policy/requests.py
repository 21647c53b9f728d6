"""Requests as routes see them, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meshlib.policy.match import Match
from meshlib.policy.predicate import Predicates
from meshlib.policy.request import Request
from meshlib.policy.route import Backend, Route


def request(
    method: str = "GET",
    target: str = "/",
    headers: Mapping[str, list[str]] | None = None,
    *,
    listener: str = "",
    predicates: Predicates | None = None,
    report: Callable[[str], None] = lambda _sentence: None,
) -> Request:
    """A request; header names in lower case."""
    fields = headers or {}
    return Request(
        method, target, lambda name: fields.get(name, []), predicates or Predicates(report), listener=listener
    )


def route(name: str, *matches: Match, hostnames: tuple[str, ...] = (), listeners: tuple[str, ...] = ()) -> Route:
    """A route to `svc`."""
    return Route(
        name=name,
        matches=matches,
        backends=(Backend(service="svc"),),
        idempotent=None,
        timeout_s=1.0,
        stream_idle_timeout_s=30.0,
        hostnames=hostnames,
        listeners=frozenset(listeners),
    )
