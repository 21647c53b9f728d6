"""Plans: what a destination's stacks are bound with. Pure data and shared kernels.

A plan is the same for every event loop and thread; `destination.bind` makes it a Service. It is never changed: a new
policy has new plans (see compilation.py), which find what was learned again by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config.effective import Effective
    from .policy.balance import Cluster
    from .policy.budget import RetryBudget
    from .policy.cors import Cors
    from .policy.fault import FaultPolicy
    from .policy.hash_key import HashKey
    from .policy.hash_split import HashSplit
    from .policy.header_modifier import HeaderModifier
    from .policy.limit import Limit
    from .policy.retry import RetryPolicy
    from .policy.route import Route, Split
    from .policy.route_table import RouteTable
    from .policy.session_persistence import SessionPersistence
    from .policy.url_rewrite import UrlRewrite
    from .stack import Service
    from .transport.pool import PoolSettings


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One backend of one route: what the stacks are bound with. `cluster` and `limit` share the service's lock."""

    service: str
    policy: Effective
    retry: RetryPolicy
    cluster: Cluster
    limit: Limit
    budget: RetryBudget
    pool: PoolSettings
    strict: bool
    max_response_body: int
    headers: HeaderModifier | None = None
    fault: FaultPolicy | None = None


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """Where the copies of a route's calls go; `percent`: fraction of the calls."""

    backend: BackendPlan
    percent: float
    diff: bool


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """One route: its backends (or the services that answer themselves), how they are drawn, and what is done before."""

    route: Route
    backends: tuple[BackendPlan | Service, ...]
    split: Split
    hash_split: HashSplit
    hash_key: HashKey | None = None
    headers: HeaderModifier | None = None
    rewrite: UrlRewrite | None = None
    session: SessionPersistence | None = None
    cors: Cors | None = None
    mirrors: tuple[MirrorPlan, ...] = ()

    def clusters(self) -> Iterator[BackendPlan]:
        """Every backend that has endpoints, mirrors included."""
        yield from (backend for backend in self.backends if isinstance(backend, BackendPlan))
        yield from (mirror.backend for mirror in self.mirrors)


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A destination under one policy. `service`: a canonical name, or gateway/<name>. `protocol`: "http", "grpc", or
    None for either.
    """

    service: str
    protocol: str | None
    routes: tuple[RoutePlan, ...]
    table: RouteTable
    max_decoded_bytes: int

    @property
    def strict(self) -> bool:
        """Does every backend ask its callers for an identity?"""
        return all(backend.strict for backend in self.backends())

    def backends(self) -> Iterator[BackendPlan]:
        """Every backend of every route that has endpoints, mirrors included."""
        return (backend for route in self.routes for backend in route.clusters())

    def services(self) -> set[str]:
        """The services that its calls may go to."""
        return {backend.service for backend in self.backends()}

    def endpoints(self) -> set[tuple[str, str]]:
        """(service, address) of every node that a call may reach."""
        return {(backend.service, n.endpoint.address) for backend in self.backends() for n in backend.cluster.nodes}

    def budgets(self) -> set[tuple[str, float, float]]:
        """The terms of the retry budgets that its calls draw on: service, percent, minimum per second."""
        return {
            (backend.service, backend.policy.retries.budget_percent, backend.policy.retries.budget_min_per_second)
            for backend in self.backends()
        }
