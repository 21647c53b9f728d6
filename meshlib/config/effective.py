"""The policy in force for a service or one of its routes: all levels merged, field by field, and who set what.

Built-in < `defaults` < service < route. A value that is inherited from above its ceiling is lowered to it (`CEILINGS`);
one that is written there was refused when the file was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .builtin import BUILT_IN, BUILT_IN_TREE, CEILINGS
from .fields import Section
from .model import MeshConfig
from .problems import Path, path_text
from .services import Service


@dataclass(frozen=True, slots=True)
class Retries:
    """`retry_on`: words (connect_failure, reset, gateway_error, 5xx) and statuses (int). `budget_percent`: fraction."""

    max_retries: int
    retry_on: frozenset[str | int]
    per_try_timeout_s: float | None
    base_interval_s: float
    max_interval_s: float
    multiplier: float | None
    budget_percent: float
    budget_min_per_second: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings: seconds, retries, bytes."""

    max_timeout_s: float
    max_retries: int
    max_request_body: int
    max_response_body: int
    max_decoded_body: int


@dataclass(frozen=True, slots=True)
class Pool:
    """Connections to one endpoint, per event loop."""

    max_connections: int
    idle_timeout_s: float
    max_age_s: float
    connect_timeout_s: float


@dataclass(frozen=True, slots=True)
class Outlier:
    """`max_ejection_percent`: fraction of the endpoints."""

    consecutive_errors: int
    base_ejection_time_s: float
    max_ejection_percent: float


@dataclass(frozen=True, slots=True)
class CircuitBreaker:
    """Calls in flight to the service, and calls that wait for a connection."""

    max_requests: int
    max_pending: int


@dataclass(frozen=True, slots=True)
class Effective:
    """Policy in force. `idempotent` None: the method decides. `provenance`: dotted field → the level that set it."""

    timeout_s: float
    stream_idle_timeout_s: float
    idempotent: bool | None
    retries: Retries
    load_balancer: str
    mtls: str
    limits: Limits
    pool: Pool
    outlier: Outlier
    circuit_breaker: CircuitBreaker
    provenance: Mapping[str, str]


def effective(config: MeshConfig, service: str, route: int | None = None) -> Effective:
    """Of a service by canonical name, or of gateway/<name>, and of its route by index (None: a call that no route
    matches).

    A service that is not in the file has `defaults`. Raises IndexError for a route that does not exist.
    """
    values = dict(_BUILT_IN)
    provenance = dict.fromkeys(BUILT_IN, "built-in")
    for path, section in _levels(config, service, route):
        for name, value in _flat(section):
            values[name] = value
            provenance[name] = f"{path_text(path)} ({config.place((*path, *name.split('.')))})"
    for name, ceiling in CEILINGS:
        if values[name] is not None and values[name] > values[ceiling]:
            values[name], provenance[name] = values[ceiling], f"{ceiling}: {provenance[ceiling]}"
    return _made(values, provenance)


def _levels(config: MeshConfig, service: str, route: int | None) -> Iterator[tuple[Path, Section]]:
    yield ("defaults",), config.defaults
    owner, path = config.owner(service), config.path_of(service)
    if owner is None:
        return
    yield path, owner
    if route is not None:
        yield (*path, "routes", route), owner.routes[route]


def _flat(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted field, value) of every setting that is written in a section."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None and prefix + name in BUILT_IN:
            yield prefix + name, value


def _made(of: Mapping[str, Any], provenance: Mapping[str, str]) -> Effective:
    return Effective(
        timeout_s=of["timeout"],
        stream_idle_timeout_s=of["stream_idle_timeout"],
        idempotent=of["idempotent"],
        retries=Retries(
            max_retries=of["retries.max_retries"],
            retry_on=frozenset(of["retries.retry_on"]),
            per_try_timeout_s=of["retries.per_try_timeout"],
            base_interval_s=of["retries.back_off.base_interval"],
            max_interval_s=of["retries.back_off.max_interval"],
            multiplier=of["retries.back_off.multiplier"],
            budget_percent=of["retries.budget.percent"],
            budget_min_per_second=of["retries.budget.min_per_second"],
        ),
        load_balancer=of["load_balancer.policy"],
        mtls=of["mtls"],
        limits=Limits(
            max_timeout_s=of["limits.max_timeout"],
            max_retries=of["limits.max_retries"],
            max_request_body=of["limits.max_request_body"],
            max_response_body=of["limits.max_response_body"],
            max_decoded_body=of["limits.max_decoded_body"],
        ),
        pool=Pool(
            max_connections=of["connection_pool.max_connections"],
            idle_timeout_s=of["connection_pool.idle_timeout"],
            max_age_s=of["connection_pool.max_age"],
            connect_timeout_s=of["connection_pool.connect_timeout"],
        ),
        outlier=Outlier(
            consecutive_errors=of["outlier_detection.consecutive_errors"],
            base_ejection_time_s=of["outlier_detection.base_ejection_time"],
            max_ejection_percent=of["outlier_detection.max_ejection_percent"],
        ),
        circuit_breaker=CircuitBreaker(
            max_requests=of["circuit_breaker.max_requests"], max_pending=of["circuit_breaker.max_pending"]
        ),
        provenance=provenance,
    )


_BUILT_IN = {**dict.fromkeys(BUILT_IN), **dict(_flat(Service.model_validate(BUILT_IN_TREE)))}
