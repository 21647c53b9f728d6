"""Binding: from the plan of a destination to the Service of one scope. Nothing is looked up per call.

CALL, the router, and per route RULE, the split, and per backend ROUTE, the balancer, and per node ENDPOINT, the leaf:
what each holds, and why there, is in stacks.py.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from . import stacks
from .plan import BackendPlan
from .policy.balance import Balance
from .policy.fault import Fault
from .policy.mirror import Mirror, Mirrors
from .policy.refusal import refusal
from .policy.retry import IDEMPOTENT_METHODS
from .policy.route import Distribute, Router

if TYPE_CHECKING:
    from .call import Call, Reply
    from .endpoint import Endpoint
    from .plan import RoutePlan, ServicePlan
    from .policy.node import Node
    from .policy.predicate import Predicates
    from .runtime import Runtime
    from .stack import Service
    from .telemetry.metrics import Metrics
    from .telemetry.tracing import Tracing


class Scope(Protocol):
    """Where a plan is bound: one event loop, or the threads of the process. It owns the connections."""

    runtime: Runtime
    tracing: Tracing
    metrics: Metrics
    predicates: Predicates
    source: str

    def leaf(self, backend: BackendPlan, endpoint: Endpoint) -> Service:
        """The service that sends to one endpoint."""


def bind(plan: ServicePlan, scope: Scope) -> Service:
    """The whole client stack of a destination in `scope`; a route is bound when it is first taken."""
    router = Router(
        [route.route for route in plan.routes],
        plan.table,
        lambda index: _bind_route(plan, plan.routes[index], scope),
        IDEMPOTENT_METHODS,
        scope.predicates,
        _unmatched,
    )
    context = stacks.CallContext(scope.tracing, scope.metrics, scope.source, plan.service, scope.runtime.now)
    return stacks.CALL.bind(context, router)


def _bind_route(plan: ServicePlan, route: RoutePlan, scope: Scope) -> Service:
    name = route.route.name
    services = [
        _bind_backend(backend, scope, plan.service, name) if isinstance(backend, BackendPlan) else backend
        for backend in route.backends
    ]
    distribute = services[0]
    if len(services) > 1:
        distribute = Distribute(route.split, route.hash_split, route.hash_key, services, scope.runtime.rng)
    mirrors = [
        Mirror(
            _bind_backend(mirror.backend, scope, plan.service, name, copies=True),
            mirror.percent,
            mirror.diff,
            mirror.backend.limit,
            scope.metrics.mirrored(scope.source, mirror.backend.service, name),
        )
        for mirror in route.mirrors
    ]
    context = stacks.RuleContext(
        route.cors,
        route.headers,
        route.rewrite,
        route.session,
        Mirrors(mirrors, scope.runtime) if mirrors else None,
    )
    return stacks.RULE.bind(context, distribute)


def _bind_backend(backend: BackendPlan, scope: Scope, destination: str, route: str, *, copies: bool = False) -> Service:
    """`copies`: of mirrored calls, which have a budget of their own in the place of the limit."""
    runtime, policy, cluster = scope.runtime, backend.policy, backend.cluster
    per_try_s = policy.retries.per_try_timeout_s
    services: dict[Node, Service] = {}
    for node in cluster.nodes:
        context = stacks.EndpointContext(scope.tracing, node.endpoint, per_try_s, runtime.now)
        services[node] = stacks.ENDPOINT.bind(context, scope.leaf(backend, node.endpoint))
    full_attempt_s = policy.timeout_s if per_try_s is None else min(per_try_s, policy.timeout_s)
    fault = None
    if backend.fault is not None:
        record = scope.metrics.faults_injected(scope.source, destination, route)
        fault = Fault(backend.fault, runtime, record, per_try_s)
    return stacks.ROUTE.bind(
        stacks.RouteContext(
            policy.timeout_s,
            policy.limits.max_timeout_s,
            None if copies else backend.limit,
            backend.retry,
            backend.budget,
            cluster.lock,
            runtime,
            time.time,
            backend.headers,
            fault,
        ),
        Balance(cluster, services, full_attempt_s, runtime.now, runtime.rng),
    )


def _unmatched(call: Call) -> Reply:
    """Envoy's answer to what no route takes: 404, made by the mesh."""
    message = f"no route of {call.service} takes {call.method} {call.target.decode('latin-1')}"
    return refusal(404, "no_route", message)
