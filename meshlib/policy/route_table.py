"""The routes of one owner, so that the first that takes a request is found without asking each of them.

Matches are grouped by their *shape*: which of host, path, one header and one query parameter they fix, and how. All
matches of one shape lie in one hash table under the values that they fix, so one lookup per shape finds those that can
take a request, and only those are asked. Shapes are asked in the order of their first route and no further than the
best one found: the answer is that of asking every route in order. (Tuple space search: Srinivasan 1999, Open vSwitch.)
A table costs by its shapes, of which a policy has few, and not by its routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from .match import Match

if TYPE_CHECKING:
    from .match import Condition
    from .request import Request
    from .route import Route

ANYTHING = Match()


class Found(NamedTuple):
    """The route by its place in the list, and the path prefix by which it took the request, or ''."""

    route: int
    prefix: str


class _Entry(NamedTuple):
    order: int
    found: Found
    match: Match
    listeners: frozenset[str]

    def takes(self, request: Request) -> bool:
        return (not self.listeners or request.listener in self.listeners) and self.match.takes(request)


class _Shape(NamedTuple):
    """`host`: None, 0 for a whole name, n for the n labels below a wildcard. `path`: None, -1 for a whole path, n for
    a prefix of n segments. `header`, `query`: the name whose value is fixed, or ''.
    """

    host: int | None
    path: int | None
    header: str
    query: str

    def keys(self, request: Request) -> Iterable[tuple[Any, ...]]:
        """What a match of this shape fixes, as the request has it: none where it cannot take it."""
        path: str | None = None
        if self.path is not None:
            if self.path < 0:
                path = request.path
            elif self.path < len(request.stems):
                path = request.stems[self.path]
            else:
                return ()
        host: str | None = None
        if self.host is not None:
            host = request.host
            if self.host:
                labels = host.split(".")
                if len(labels) <= self.host:
                    return ()
                host = ".".join(labels[-self.host :])
        if not self.header and not self.query:
            return ((host, path, None, None),)
        headers: Sequence[str | None] = request.headers(self.header) if self.header else (None,)
        params: Sequence[str | None] = request.query_params(self.query) if self.query else (None,)
        return product((host,), (path,), dict.fromkeys(headers), dict.fromkeys(params))


class _Group:
    __slots__ = ("buckets", "least", "shape")

    def __init__(self, shape: _Shape, least: int) -> None:
        self.shape, self.least = shape, least
        self.buckets: dict[tuple[Any, ...], list[_Entry]] = {}


class RouteTable:
    """`caller`: the canonical name of who calls; matches for other callers are left out."""

    __slots__ = ("_groups", "always")

    def __init__(self, routes: Sequence[Route], caller: str) -> None:
        first = routes[0] if routes else None
        self.always = first is not None and not (first.matches or first.hostnames or first.listeners)
        groups: dict[_Shape, _Group] = {}
        order = 0
        for index, route in enumerate(routes):
            for match in route.matches or (ANYTHING,):
                if match.callers is not None and caller not in match.callers:
                    continue
                for hostname in route.hostnames or ("",):
                    shape, key = _shape(hostname, match)
                    group = groups.get(shape)
                    if group is None:
                        group = groups[shape] = _Group(shape, order)
                    entry = _Entry(order, Found(index, match.prefix or ""), match, route.listeners)
                    group.buckets.setdefault(key, []).append(entry)
                    order += 1
        self._groups = tuple(groups.values())  # in the order of their first entries

    def find(self, request: Request) -> Found | None:
        """The first route that takes the request; None where none does."""
        best: _Entry | None = None
        for group in self._groups:
            if best is not None and group.least > best.order:
                break
            for key in group.shape.keys(request):
                for entry in group.buckets.get(key, ()):
                    if best is not None and entry.order > best.order:
                        break
                    if entry.takes(request):
                        best = entry
                        break
        return None if best is None else best.found


def _shape(hostname: str, match: Match) -> tuple[_Shape, tuple[Any, ...]]:
    host = None if not hostname else hostname.count(".") if hostname.startswith("*.") else 0
    path: int | None = None
    fixed: str | None = None
    if match.exact is not None:
        path, fixed = -1, match.exact
    elif match.prefix is not None:
        fixed = match.prefix.rstrip("/")
        path = fixed.count("/")
    header, query = _exact(match.headers), _exact(match.query)
    shape = _Shape(host, path, header.name if header else "", query.name if query else "")
    key = (
        hostname.removeprefix("*.") or None,
        fixed,
        header.value if header else None,
        query.value if query else None,
    )
    return shape, key


def _exact(conditions: Sequence[Condition]) -> Condition | None:
    return min((c for c in conditions if c.kind == "exact"), key=lambda c: c.name, default=None)
