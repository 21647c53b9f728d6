"""Routing: which rule of the service's list takes the call, and which backend of that rule. The first match wins.

A match is an *and* of its parts; a route takes a call when *any* of its matches does, or when it has none. A path
prefix is segment-aware: `/items` takes `/items` and `/items/7`, not `/itemsize` (Gateway API `PathPrefix`). Paths are
compared as they are sent, without the query. The backend is drawn once per call: retries stay on it (gRFC A31).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from ..call import Call, Reply

if TYPE_CHECKING:
    from ..runtime import Rng
    from ..stack import Service

HeaderKind = Literal["exact", "prefix", "suffix", "contains", "present", "absent"]
Values = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """One header's test; with several values of one name, any of them may pass it."""

    name: str
    kind: HeaderKind
    value: str = ""

    def takes(self, values: Sequence[str]) -> bool:
        """Does the header pass?"""
        if self.kind == "present":
            return bool(values)
        if self.kind == "absent":
            return not values
        wanted = self.value
        if self.kind == "exact":
            return wanted in values
        if self.kind == "prefix":
            return any(value.startswith(wanted) for value in values)
        if self.kind == "suffix":
            return any(value.endswith(wanted) for value in values)
        return any(wanted in value for value in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """All that is set must hold. `exact` and `prefix` start with a slash; `methods` are upper case."""

    exact: str | None = None
    prefix: str | None = None
    methods: frozenset[str] | None = None
    headers: tuple[HeaderMatch, ...] = ()

    def takes(self, method: str, path: str, values: Values) -> bool:
        """Does a request pass? `values(name)` gives every value of a header."""
        if self.methods is not None and method not in self.methods:
            return False
        if self.exact is not None and path != self.exact:
            return False
        if self.prefix is not None:
            stem = self.prefix.rstrip("/")
            if not path.startswith(stem) or (len(path) > len(stem) and path[len(stem)] != "/"):
                return False
        return all(header.takes(values(header.name)) for header in self.headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where a route's calls go: a canonical service, one of its subsets ('' for all), and a weight ≥ 0."""

    service: str
    subset: str = ""
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A rule of a service. `idempotent`: None means by method. Times in seconds."""

    name: str
    matches: tuple[Match, ...]
    backends: tuple[Backend, ...]
    idempotent: bool | None
    timeout_s: float
    stream_idle_timeout_s: float

    def takes(self, method: str, path: str, values: Values) -> bool:
        """Does this route take the request?"""
        return not self.matches or any(match.takes(method, path, values) for match in self.matches)


def first_match(routes: Sequence[Route], method: str, path: str, values: Values) -> int | None:
    """The index of the route that takes the request, or None."""
    for index, route in enumerate(routes):
        if route.takes(method, path, values):
            return index
    return None


def path_of(target: bytes) -> str:
    """The path of a request target, without its query, as it was sent."""
    return target.partition(b"?")[0].decode("latin-1")


class Split:
    """Draw a backend by weight; one with weight 0 is never drawn."""

    __slots__ = ("_cumulative",)

    def __init__(self, weights: Sequence[int]) -> None:
        self._cumulative = tuple(accumulate(weights))
        if not self._cumulative or self._cumulative[-1] <= 0:
            raise ValueError(f"a split needs a positive weight, got {list(weights)}")

    def draw(self, rng: Rng) -> int:
        """The index of a backend."""
        return bisect_right(self._cumulative, rng.random() * self._cumulative[-1])


class Router:
    """The service that finds a call's route and hands it to what was bound for it.

    `bound[i]`: a split and a service per backend of `routes[i]`. No match gives `unmatched` (a 404 of the mesh).
    """

    __slots__ = ("bound", "idempotent_methods", "rng", "routes", "unmatched")

    def __init__(
        self,
        routes: Sequence[Route],
        bound: Sequence[tuple[Split, Sequence[Service]]],
        idempotent_methods: frozenset[str],
        rng: Rng,
        unmatched: Callable[[Call], Reply],
    ) -> None:
        self.routes, self.bound, self.idempotent_methods = tuple(routes), tuple(bound), idempotent_methods
        self.rng, self.unmatched = rng, unmatched

    async def __call__(self, call: Call) -> Reply:
        routes = self.routes
        index: int | None = 0
        if len(routes) > 1 or routes[0].matches:
            index = first_match(routes, call.method, path_of(call.target), call.header)
            if index is None:
                call.trail.notes.append("no route matches")
                return self.unmatched(call)
        route = routes[index]  # type: ignore[index]
        call.route = route
        call.trail.route = route.name
        if call.idempotent is None:
            call.idempotent = call.method in self.idempotent_methods if route.idempotent is None else route.idempotent
        split, services = self.bound[index]  # type: ignore[index]
        return await services[0 if len(services) == 1 else split.draw(self.rng)](call)
