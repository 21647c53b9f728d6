"""Routing: which rule of the service's list takes the call, and which backend of that rule. The first match wins.

A match is an *and* of its parts; a route takes a call when *any* of its matches does, or when it has none. The backend
is drawn once per call: retries stay on it (gRFC A31).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from ..call import Call, Reply
from .request import Request

if TYPE_CHECKING:
    from ..runtime import Rng
    from ..stack import Service
    from .hash_key import HashKey
    from .hash_split import HashSplit
    from .match import Match
    from .predicate import Predicates
    from .route_table import RouteTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Where a route's calls go: a canonical service, one of its subsets ('' for all), and a weight ≥ 0.

    A backend without a service answers itself, as `answer` says.
    """

    service: str = ""
    subset: str = ""
    weight: int = 1
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A rule of a service. `idempotent`: None means by method. Times in seconds. No `listeners`: any."""

    name: str
    matches: tuple[Match, ...]
    backends: tuple[Backend, ...]
    idempotent: bool | None
    timeout_s: float
    stream_idle_timeout_s: float
    hostnames: tuple[str, ...] = ()
    listeners: frozenset[str] = frozenset()


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


class Distribute:
    """The service that hands a call to a backend of its route: by its hash key where it has one, else by weight."""

    __slots__ = ("hash_key", "hash_split", "rng", "services", "split")

    def __init__(
        self,
        split: Split,
        hash_split: HashSplit,
        hash_key: HashKey | None,
        services: Sequence[Service],
        rng: Rng,
    ) -> None:
        self.split, self.hash_split, self.hash_key = split, hash_split, hash_key
        self.services, self.rng = tuple(services), rng

    async def __call__(self, call: Call) -> Reply:
        key = call.hash_key
        if key is None and self.hash_key is not None:
            key = self.hash_key.of(call)
        index = self.split.draw(self.rng) if key is None else self.hash_split.draw(key)
        return await self.services[index](call)


class Router:
    """The service that finds a call's route and hands it on. `bind(i)`: the service of `routes[i]`, asked for when that
    is first taken. No match gives `unmatched` (a 404 of the mesh).
    """

    __slots__ = ("bind", "bound", "idempotent_methods", "predicates", "routes", "table", "unmatched")

    def __init__(
        self,
        routes: Sequence[Route],
        table: RouteTable,
        bind: Callable[[int], Service],
        idempotent_methods: frozenset[str],
        predicates: Predicates,
        unmatched: Callable[[Call], Reply],
    ) -> None:
        self.routes, self.table, self.bind = tuple(routes), table, bind
        self.bound: list[Service | None] = [None] * len(self.routes)
        self.idempotent_methods, self.predicates, self.unmatched = idempotent_methods, predicates, unmatched

    async def __call__(self, call: Call) -> Reply:
        index = 0
        if not self.table.always:
            listener = "" if call.listener is None else call.listener.name
            target = call.target.decode("latin-1")
            request = Request(
                call.method, target, call.header, self.predicates, service=call.service, listener=listener
            )
            found = self.table.find(request)
            if found is None:
                call.trail.notes.append("no route matches")
                return self.unmatched(call)
            index, call.matched_prefix = found
        route = self.routes[index]
        call.route = route
        call.trail.route = route.name
        if call.idempotent is None:
            call.idempotent = call.method in self.idempotent_methods if route.idempotent is None else route.idempotent
        service = self.bound[index]
        if service is None:
            service = self.bound[index] = self.bind(index)
        return await service(call)
