"""The settings that `defaults` and every service may have. None: not written at this level (see `effective`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .fields import Duration, RetryCondition, Section, Share, Size, number, setting, whole

MULTIPLIER_MIN, MULTIPLIER_MAX = 0.001, 1000.0
"""Of `retries.back_off.multiplier`: beyond, the first wait or the longest one says the same."""


class BackOff(Section):
    """The wait before a retry: full jitter below base_interval times two per retry, up to max_interval. With a
    multiplier, as gRPC has it: base_interval times the multiplier per retry, up to max_interval, give or take 20 %.
    """

    base_interval: Duration | None = setting("retries.back_off.base_interval", "Duration: ceiling of the first wait.")
    max_interval: Duration | None = setting("retries.back_off.max_interval", "Duration: ceiling of every wait.")
    multiplier: Annotated[float, number(MULTIPLIER_MIN, MULTIPLIER_MAX)] | None = setting(
        "retries.back_off.multiplier", "How much longer each wait is than the one before: gRPC's backoffMultiplier."
    )


class Budget(Section):
    """How many retries all calls of a process to a service may make together, over ten seconds."""

    percent: Share | None = setting("retries.budget.percent", "Share of the calls that may be retried.")
    min_per_second: Annotated[int, whole(0, 1_000_000)] | None = setting(
        "retries.budget.min_per_second", "Retries per second that are allowed on top, from 0."
    )


class Retries(Section):
    """When and how often a call is tried again. Only what is provably unprocessed or idempotent ever is."""

    max_retries: Annotated[int, whole(0, 10)] | None = setting(
        "retries.max_retries", "Attempts after the first, from 0 to 10."
    )
    retry_on: tuple[RetryCondition, ...] | None = setting(
        "retries.retry_on",
        "What is retried: connect_failure, reset, gateway_error (502, 503, 504), 5xx, a status from 400 to 599, or a "
        "gRPC code such as unavailable.",
    )
    per_try_timeout: Duration | None = setting(
        "retries.per_try_timeout", "Duration of one attempt, at most the timeout."
    )
    back_off: BackOff = Field(default=BackOff(), description="The wait before a retry.")
    budget: Budget = Field(default=Budget(), description="How many retries all calls may make together.")


class LoadBalancer(Section):
    """Which endpoint a call goes to."""

    policy: Literal["peak_ewma", "least_request", "round_robin", "random"] | None = setting(
        "load_balancer.policy", "peak_ewma, least_request, round_robin or random."
    )


class Limits(Section):
    """Ceilings that no lower level passes, a call's own policy included."""

    max_timeout: Duration | None = setting("limits.max_timeout", "Duration: the longest timeout.")
    max_retries: Annotated[int, whole(0, 10)] | None = setting("limits.max_retries", "The most retries, from 0 to 10.")
    max_request_body: Size | None = setting("limits.max_request_body", "Size of a request's body.")
    max_response_body: Size | None = setting("limits.max_response_body", "Size of a response's body as received.")
    max_decoded_body: Size | None = setting("limits.max_decoded_body", "Size of a response's body once decompressed.")


class ConnectionPool(Section):
    """Connections to one endpoint, per event loop."""

    max_connections: Annotated[int, whole(1, 65_535)] | None = setting(
        "connection_pool.max_connections", "Connections, from 1 to 65535."
    )
    idle_timeout: Duration | None = setting("connection_pool.idle_timeout", "Duration a connection may lie idle.")
    max_age: Duration | None = setting("connection_pool.max_age", "Duration after which a connection is not reused.")
    connect_timeout: Duration | None = setting(
        "connection_pool.connect_timeout", "Duration of connecting, the TLS handshake included."
    )


class OutlierDetection(Section):
    """When an endpoint that fails is left out, and for how long."""

    consecutive_errors: Annotated[int, whole(1, 1000)] | None = setting(
        "outlier_detection.consecutive_errors", "Errors in a row that eject, from 1 to 1000."
    )
    base_ejection_time: Duration | None = setting(
        "outlier_detection.base_ejection_time", "Duration of the first ejection; grows with each."
    )
    max_ejection_percent: Share | None = setting(
        "outlier_detection.max_ejection_percent", "Share of the endpoints that may be out at once; at least one may."
    )


class CircuitBreaker(Section):
    """How much may be in flight to a service from one process."""

    max_requests: Annotated[int, whole(1, 1_000_000)] | None = setting(
        "circuit_breaker.max_requests", "Calls in flight, from 1 to 1000000."
    )
    max_pending: Annotated[int, whole(0, 1_000_000)] | None = setting(
        "circuit_breaker.max_pending", "Calls that wait for a connection, from 0 to 1000000."
    )


class Settings(Section):
    """What `defaults` says for every service; a service says it for itself."""

    timeout: Duration | None = setting("timeout", "Duration of a whole call, all attempts included.")
    retries: Retries = Field(default=Retries(), description="When and how often a call is tried again.")
    load_balancer: LoadBalancer = Field(default=LoadBalancer(), description="Which endpoint a call goes to.")
    mtls: Literal["strict", "disabled"] | None = setting(
        "mtls", "strict: both sides prove who they are by a certificate. disabled: plain text, nobody is known."
    )
    limits: Limits = Field(default=Limits(), description="Ceilings that no lower level passes.")
    connection_pool: ConnectionPool = Field(
        default=ConnectionPool(), description="Connections to one endpoint, per loop."
    )
    outlier_detection: OutlierDetection = Field(default=OutlierDetection(), description="When an endpoint is left out.")
    circuit_breaker: CircuitBreaker = Field(default=CircuitBreaker(), description="How much may be in flight.")
