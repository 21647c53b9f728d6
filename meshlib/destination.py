"""Compiling: from mesh.yaml to what a call runs through. Policy in, bound stacks out; nothing is looked up per call.

`compile_service` makes the plan of one service from the configuration: pure data and shared kernels, the same for every
event loop and thread. `bind` makes it a Service for one scope, which owns the connections. A plan is never changed: a
new policy has new plans, which find what was learned again by name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from . import stacks
from .call import Call, Reply
from .config.effective import Effective, effective
from .policy.balance import Balance, BalancerName, Cluster
from .policy.outlier import OutlierPolicy
from .policy.retry import IDEMPOTENT_METHODS, RetryPolicy
from .policy.route import Backend, HeaderKind, HeaderMatch, Match, Route, Router, Split
from .transport.pool import PoolSettings

if TYPE_CHECKING:
    from .config import MeshConfig
    from .config.routes import HeaderCondition
    from .config.routes import Match as WrittenMatch
    from .endpoint import Endpoint
    from .learned import Learned
    from .policy.budget import RetryBudget
    from .policy.limit import Limit
    from .policy.node import Node
    from .runtime import Runtime
    from .stack import Service
    from .telemetry.metrics import Metrics
    from .telemetry.tracing import Tracing

GATEWAY_ERRORS = frozenset((502, 503, 504))
SERVER_ERRORS = frozenset(range(500, 600))


@dataclass(frozen=True, slots=True)
class BackendPlan:
    """One backend of one route: what the stacks are bound with. `cluster` and `context` share the service's lock."""

    service: str
    policy: Effective
    retry: RetryPolicy
    cluster: Cluster
    limit: Limit
    budget: RetryBudget
    pool: PoolSettings
    strict: bool
    max_response_body: int


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A service under one policy: its routes, and for each its backends and how they are drawn."""

    service: str
    routes: tuple[Route, ...]
    backends: tuple[tuple[BackendPlan, ...], ...]
    splits: tuple[Split, ...]
    max_decoded_bytes: int

    @property
    def strict(self) -> bool:
        """Does every backend ask its callers for an identity?"""
        return all(backend.strict for backends in self.backends for backend in backends)

    def services(self) -> set[str]:
        """The services that its calls may go to."""
        return {backend.service for backends in self.backends for backend in backends}

    def endpoints(self) -> set[tuple[str, str]]:
        """(service, address) of every node that a call may reach."""
        return {
            (backend.service, node.endpoint.address)
            for backends in self.backends
            for backend in backends
            for node in backend.cluster.nodes
        }

    def budgets(self) -> set[tuple[str, float, float]]:
        """The terms of the retry budgets that its calls draw on: service, percent, minimum per second."""
        return {
            (backend.service, backend.policy.retries.budget_percent, backend.policy.retries.budget_min_per_second)
            for backends in self.backends
            for backend in backends
        }


class Scope(Protocol):
    """Where a plan is bound: one event loop, or the threads of the process. It owns the connections."""

    runtime: Runtime
    tracing: Tracing
    metrics: Metrics
    source: str

    def leaf(self, backend: BackendPlan, endpoint: Endpoint) -> Service:
        """The service that sends to one endpoint."""


def routes_of(config: MeshConfig, service: str) -> tuple[Route, ...]:
    """The routes of a service, in order; one that takes everything where it has none, or is not in the policy."""
    written = config.services[service].routes if service in config.services else ()
    if not written:
        return (_route("-", effective(config, service), (), (Backend(service=service),)),)
    namespace = service.partition(".")[2]
    return tuple(
        _route(
            route.name,
            effective(config, service, index),
            tuple(_match(m) for m in route.matches),
            tuple(
                Backend(
                    service=config.canonical(b.service, namespace) or b.service if b.service else service,
                    subset=b.subset or "",
                    weight=b.weight,
                )
                for b in route.backends
            )
            or (Backend(service=service),),
        )
        for index, route in enumerate(written)
    )


def compile_service(config: MeshConfig, service: str, learned: Learned) -> ServicePlan:
    """The plan of `service`, which is canonical and in the policy."""
    has_routes = bool(config.services[service].routes)
    routes = routes_of(config, service)
    return ServicePlan(
        service,
        routes,
        tuple(
            tuple(
                _backend(config, effective(config, service, i if has_routes else None), backend, learned)
                for backend in route.backends
            )
            for i, route in enumerate(routes)
        ),
        tuple(Split([backend.weight for backend in route.backends]) for route in routes),
        effective(config, service).limits.max_decoded_body,
    )


def bind(plan: ServicePlan, scope: Scope) -> Service:
    """The whole client stack of a service in `scope`."""
    runtime = scope.runtime
    bound = [
        (split, [_bind_backend(backend, scope) for backend in backends])
        for split, backends in zip(plan.splits, plan.backends, strict=True)
    ]
    router = Router(plan.routes, bound, IDEMPOTENT_METHODS, runtime.rng, _unmatched)
    context = stacks.CallContext(scope.tracing, scope.metrics, scope.source, plan.service, runtime.now)
    return stacks.CALL.bind(context, router)


def _bind_backend(backend: BackendPlan, scope: Scope) -> Service:
    runtime, policy, cluster = scope.runtime, backend.policy, backend.cluster
    per_try_s = policy.retries.per_try_timeout_s
    services: dict[Node, Service] = {}
    for node in cluster.nodes:
        context = stacks.EndpointContext(scope.tracing, node.endpoint, per_try_s, runtime.now)
        services[node] = stacks.ENDPOINT.bind(context, scope.leaf(backend, node.endpoint))
    full_attempt_s = policy.timeout_s if per_try_s is None else min(per_try_s, policy.timeout_s)
    return stacks.ROUTE.bind(
        stacks.RouteContext(
            policy.timeout_s,
            policy.limits.max_timeout_s,
            backend.limit,
            backend.retry,
            backend.budget,
            cluster.lock,
            runtime,
            time.time,
        ),
        Balance(cluster, services, full_attempt_s, runtime.now, runtime.rng),
    )


def _backend(config: MeshConfig, route: Effective, backend: Backend, learned: Learned) -> BackendPlan:
    """The route's owner decides how often and how long; the backend's own policy how it is balanced and protected."""
    own = effective(config, backend.service)
    outlier = OutlierPolicy(
        consecutive_errors=own.outlier.consecutive_errors,
        base_ejection_time_s=own.outlier.base_ejection_time_s,
        max_ejection_share=own.outlier.max_ejection_percent,
    )
    subsets = config.services[backend.service].subsets
    selector = subsets[backend.subset] if backend.subset else {}
    nodes = [
        learned.node(backend.service, endpoint, outlier)
        for endpoint in config.endpoints(backend.service)
        if endpoint.has(selector)
    ]
    name = f"{backend.service} ({backend.subset})" if backend.subset else backend.service
    return BackendPlan(
        backend.service,
        route,
        _retry(route),
        Cluster(
            name,
            nodes,
            cast("BalancerName", own.load_balancer),
            outlier,
            learned.lock(backend.service),
            own.pool.connect_timeout_s,
        ),
        learned.limit(backend.service, own.circuit_breaker.max_requests),
        learned.budget(backend.service, route.retries.budget_percent, route.retries.budget_min_per_second),
        PoolSettings(
            max_connections=own.pool.max_connections,
            max_pending=own.circuit_breaker.max_pending,
            idle_timeout_s=own.pool.idle_timeout_s,
            max_age_s=own.pool.max_age_s,
            connect_timeout_s=own.pool.connect_timeout_s,
        ),
        own.mtls == "strict",
        own.limits.max_response_body,
    )


def _retry(policy: Effective) -> RetryPolicy:
    """`retry_on` words: connect_failure, reset, gateway_error (502, 503, 504), 5xx, or a status."""
    retries, words = policy.retries, policy.retries.retry_on
    statuses = {word for word in words if isinstance(word, int)}
    if "gateway_error" in words:
        statuses |= GATEWAY_ERRORS
    if "5xx" in words:
        statuses |= SERVER_ERRORS
    return RetryPolicy(
        max_retries=min(retries.max_retries, policy.limits.max_retries),
        retries_ceiling=policy.limits.max_retries,
        statuses=frozenset(statuses),
        on_connect="connect_failure" in words or "5xx" in words,
        on_reset="reset" in words or "5xx" in words,
        base_interval_s=retries.base_interval_s,
        max_interval_s=retries.max_interval_s,
    )


def _route(name: str, policy: Effective, matches: tuple[Match, ...], backends: Sequence[Backend]) -> Route:
    return Route(
        name=name,
        matches=matches,
        backends=tuple(backends),
        idempotent=policy.idempotent,
        timeout_s=policy.timeout_s,
        stream_idle_timeout_s=policy.stream_idle_timeout_s,
    )


def _match(written: WrittenMatch) -> Match:
    path = written.path
    return Match(
        exact=path.exact if path else None,
        prefix=path.prefix if path else None,
        methods=None if written.method is None else frozenset(written.method),
        headers=tuple(_header_match(name, condition) for name, condition in written.headers.items()),
    )


def _header_match(name: str, condition: HeaderCondition) -> HeaderMatch:
    if condition.present is not None:
        return HeaderMatch(name, "present" if condition.present else "absent")
    kinds: tuple[HeaderKind, ...] = ("exact", "prefix", "suffix", "contains")
    for kind in kinds:
        value = getattr(condition, kind)
        if value is not None:
            return HeaderMatch(name, kind, value)
    raise AssertionError("a header condition has exactly one field")


def _unmatched(call: Call) -> Reply:
    """Envoy's answer to what no route takes: 404, made by the mesh."""
    message = f"no route of {call.service} takes {call.method} {call.target.decode('latin-1')}"
    body = json.dumps({"error": "no_route", "message": message, "rule": ""}).encode()
    fields = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-meshlib-refused", b"no_route"),
    ]
    return Reply(404, fields, body, reason=b"Not Found")
