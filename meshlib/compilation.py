"""Compiling: from mesh.yaml to the plan of a destination. Who owns a route decides how often and how long; the
backend's own policy, how it is balanced and protected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from .config.effective import Effective, effective
from .config.model import GATEWAY
from .grpc_code import CODE_WORDS
from .plan import BackendPlan, MirrorPlan, RoutePlan, ServicePlan
from .policy.balance import BalancerName, Cluster
from .policy.hash_split import HashSplit
from .policy.outlier import OutlierPolicy
from .policy.retry import RetryPolicy
from .policy.route import Backend, Route, Split
from .policy.route_table import RouteTable
from .translation import answer, cors, fault_policy, hash_key, header_modifier, match, session_persistence, url_rewrite
from .transport.pool import PoolSettings

if TYPE_CHECKING:
    from .config import MeshConfig
    from .config.route_actions import Mirror
    from .config.routes import Backend as WrittenBackend
    from .config.routes import Route as WrittenRoute
    from .learned import Learned
    from .policy.fault import FaultPolicy
    from .policy.header_modifier import HeaderModifier
    from .policy.match import Match
    from .stack import Service

GATEWAY_ERRORS = frozenset((502, 503, 504))
SERVER_ERRORS = frozenset(range(500, 600))


def routes_of(config: MeshConfig, owner: str) -> tuple[Route, ...]:
    """The routes of a service or of gateway/<name>, in order. A service that has none, or is not in the policy, has
    one that takes everything.
    """
    found = config.owner(owner)
    if (found is None or not found.routes) and not owner.startswith(GATEWAY):
        return (_route("-", effective(config, owner), (Backend(service=owner),)),)
    return tuple(
        _route(
            route.name,
            effective(config, owner, index),
            tuple(_backend_name(config, owner, backend) for backend in _written_backends(route)),
            tuple(match(config, owner, each) for each in route.matches),
            route.hostnames,
            frozenset(getattr(route, "listeners", ())),
        )
        for index, route in enumerate(found.routes if found is not None else ())
    )


def compile_service(config: MeshConfig, owner: str, learned: Learned, caller: str) -> ServicePlan:
    """The plan of `owner`, a canonical service of the policy or gateway/<name>, for the service `caller`."""
    found = config.owner(owner)
    written_routes: Sequence[WrittenRoute | None] = (found.routes if found is not None else ()) or (None,)
    routes = routes_of(config, owner)
    return ServicePlan(
        owner,
        getattr(found, "protocol", None),
        tuple(
            _route_plan(config, owner, route, as_written, index, learned, caller)
            for index, (route, as_written) in enumerate(zip(routes, written_routes, strict=False))
        ),
        RouteTable(routes, caller),
        effective(config, owner).limits.max_decoded_body,
    )


def _route_plan(
    config: MeshConfig,
    owner: str,
    route: Route,
    of: WrittenRoute | None,
    index: int,
    learned: Learned,
    caller: str,
) -> RoutePlan:
    policy = effective(config, owner, None if of is None else index)
    weights = [backend.weight for backend in route.backends]
    names = [f"{backend.service}|{backend.subset}|{backend.answer}" for backend in route.backends]
    split, hash_split = Split(weights), HashSplit(weights, names, f"{owner}/{route.name}")
    if of is None:
        return RoutePlan(route, (_backend(config, policy, route.backends[0], learned),), split, hash_split)
    fault = fault_policy(of.fault)
    backends: list[BackendPlan | Service] = []
    for each, backend in zip(_written_backends(of), route.backends, strict=True):
        own = header_modifier(each.request_headers, each.response_headers)
        backends.append(answer(each) or _backend(config, policy, backend, learned, own, fault))
    allowed = getattr(of, "cors", None)
    return RoutePlan(
        route,
        tuple(backends),
        split,
        hash_split,
        hash_key(of.hash_key, caller),
        header_modifier(of.request_headers, of.response_headers),
        url_rewrite(of.url_rewrite),
        session_persistence(of.session_persistence),
        None if allowed is None else cors(allowed),
        tuple(_mirror(config, owner, policy, each, learned) for each in of.mirror or ()),
    )


def _mirror(config: MeshConfig, owner: str, policy: Effective, of: Mirror, learned: Learned) -> MirrorPlan:
    backend = _backend(config, policy, _backend_name(config, owner, of), learned)
    return MirrorPlan(backend, of.percent, of.diff)


def _written_backends(route: WrittenRoute) -> Sequence[WrittenBackend | WrittenRoute]:
    """What takes the calls: a route that answers itself is its only backend."""
    return (route,) if route.request_redirect is not None or route.direct_response is not None else route.backends


def _backend_name(config: MeshConfig, owner: str, of: WrittenBackend | WrittenRoute | Mirror) -> Backend:
    kind = next((kind for kind in ("request_redirect", "direct_response") if getattr(of, kind, None) is not None), "")
    if kind:
        return Backend(answer=kind, weight=getattr(of, "weight", 1))
    name, namespace = getattr(of, "service", None), owner.partition(".")[2] or "default"
    return Backend(
        service=config.canonical(name, namespace) or name if name else owner,
        subset=getattr(of, "subset", None) or "",
        weight=getattr(of, "weight", 1),
    )


def _backend(
    config: MeshConfig,
    route: Effective,
    backend: Backend,
    learned: Learned,
    headers: HeaderModifier | None = None,
    fault: FaultPolicy | None = None,
) -> BackendPlan:
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
            {} if nodes else _why_empty(config, backend.service),
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
        headers,
        fault,
    )


def _why_empty(config: MeshConfig, service: str) -> dict[str, str]:
    """What name servers say of the sources of a service that gave no endpoint."""
    found = ((question, config.resolved(question)) for question in config.questions(service))
    return {str(question): resolved.trouble for question, resolved in found if resolved is not None}


def _retry(policy: Effective) -> RetryPolicy:
    """`retry_on` words: connect_failure, reset, gateway_error (502, 503, 504), 5xx, a status, or a gRPC code."""
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
        codes=frozenset(CODE_WORDS[word] for word in words if word in CODE_WORDS),
        on_connect="connect_failure" in words or "5xx" in words,
        on_reset="reset" in words or "5xx" in words,
        base_interval_s=retries.base_interval_s,
        max_interval_s=retries.max_interval_s,
        multiplier=retries.multiplier,
    )


def _route(
    name: str,
    policy: Effective,
    backends: tuple[Backend, ...],
    matches: tuple[Match, ...] = (),
    hostnames: tuple[str, ...] = (),
    listeners: frozenset[str] = frozenset(),
) -> Route:
    return Route(
        name=name,
        matches=matches,
        backends=backends,
        idempotent=policy.idempotent,
        timeout_s=policy.timeout_s,
        stream_idle_timeout_s=policy.stream_idle_timeout_s,
        hostnames=hostnames,
        listeners=listeners,
    )
