"""The recipes: which filters a call goes through, in which order, and why each sits where it does.

    client   CALL ─ router ─ RULE ─ split ─ ROUTE ─ balance ─ ENDPOINT ─ leaf
    server   SERVER ─ the application

The router, the split and the balancer are the hinges: one stack per destination, one per route, one per (route,
backend), one per node. Everything is bound once per policy version; `print(stacks.CALL)` shows a recipe with its
reasons. Sources for the order: Finagle `StackClient.scala`, linkerd2-proxy `push_http_endpoint`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .policy.deadline import AttemptTimeout, Deadline
from .policy.retry import Retry, RetryPolicy
from .stack import Layer, Stack
from .telemetry.metrics import CallMetrics, Metrics, ServedMetrics
from .telemetry.tracing import AttemptTrace, CallTrace, ServedTrace, Tracing
from .transport import admission

if TYPE_CHECKING:
    from .endpoint import Endpoint
    from .policy.budget import RetryBudget
    from .policy.cors import Cors
    from .policy.fault import Fault
    from .policy.header_modifier import HeaderModifier
    from .policy.limit import Limit
    from .policy.mirror import Mirrors
    from .policy.session_persistence import SessionPersistence
    from .policy.url_rewrite import UrlRewrite
    from .runtime import Lock, Runtime
    from .transport.admission import InFlight


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a CALL stack is bound with: one per (destination, runtime)."""

    tracing: Tracing
    metrics: Metrics
    source: str
    destination: str
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class RuleContext:
    """What a RULE stack is bound with: one per (route, runtime). None: the route does not say it."""

    cors: Cors | None
    headers: HeaderModifier | None
    rewrite: UrlRewrite | None
    session: SessionPersistence | None
    mirrors: Mirrors | None


@dataclass(frozen=True, slots=True)
class RouteContext:
    """What a ROUTE stack is bound with: one per (route, backend, runtime). Times in seconds; `wall`: unix time."""

    timeout_s: float
    ceiling_s: float
    limit: Limit | None
    retry: RetryPolicy
    budget: RetryBudget
    lock: Lock
    runtime: Runtime
    wall: Callable[[], float]
    headers: HeaderModifier | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class EndpointContext:
    """What an ENDPOINT stack is bound with: one per (node, route, backend, runtime)."""

    tracing: Tracing
    endpoint: Endpoint
    per_try_timeout_s: float | None
    now: Callable[[], float]


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What a SERVER stack is bound with: one per application."""

    tracing: Tracing
    metrics: Metrics
    now: Callable[[], float]
    in_flight: InFlight
    max_concurrency: int | None = None


CALL = Stack(
    "client, the whole call",
    (
        Layer(
            "trace",
            lambda context: CallTrace(context.tracing, context.destination),
            "outermost, so that the span covers every attempt, and metrics and errors are inside it",
        ),
        Layer(
            "metrics",
            lambda context: CallMetrics(context.metrics, context.source, context.destination, context.now),
            "above deadline and retry, so that a call is counted once, with what the user saw of it",
        ),
    ),
)
"""Below it the router finds the rule: timeout, retries and idempotency are properties of a route."""

RULE = Stack(
    "client, one route",
    (
        Layer(
            "cors",
            lambda context: context.cors,
            "outermost: a preflight is answered here, and every answer of the route, whoever made it, gets its fields",
        ),
        Layer(
            "headers",
            lambda context: context.headers,
            "above the rewrite and the mirror: what goes on and its copies have the same fields",
        ),
        Layer("url rewrite", lambda context: context.rewrite, "above the mirror, for the same reason"),
        Layer(
            "session persistence",
            lambda context: context.session,
            "above retry, so that the session follows the endpoint that answered in the end",
        ),
        Layer(
            "mirror",
            lambda context: context.mirrors,
            "innermost here: a copy is of the call as it goes on, and made once, not per attempt",
        ),
    ),
)
"""Below it the split draws a backend, once per call: retries stay on it (gRFC A31)."""

ROUTE = Stack(
    "client, one route to one backend",
    (
        Layer("backend headers", lambda context: context.headers, "outermost: of this backend and no other"),
        Layer(
            "deadline",
            lambda context: Deadline(context.timeout_s, context.ceiling_s, context.runtime.now),
            "above retry, so that all attempts share one clock; below the router, which knows the timeout",
        ),
        Layer(
            "limit",
            lambda context: context.limit,
            "above retry: a call holds one place however often it is tried; below deadline: expired work takes none",
        ),
        Layer(
            "retry",
            lambda context: Retry(context.retry, context.budget, context.lock, context.runtime, context.wall),
            "above balance, so that each attempt may pick another endpoint, and a failed pick is an outcome too",
        ),
        Layer(
            "fault",
            lambda context: context.fault,
            "below retry, so that each attempt draws anew; above balance, so that no endpoint is blamed for it",
        ),
    ),
)
"""Below it the balancer picks a node: what may not be picked (breaker, ejection) costs no attempt."""

ENDPOINT = Stack(
    "client, one attempt on one node",
    (
        Layer(
            "attempt span",
            lambda context: AttemptTrace(context.tracing, context.endpoint),
            "above the attempt timeout, so that a span shows what ran out of time",
        ),
        Layer(
            "attempt timeout",
            lambda context: (
                None if context.per_try_timeout_s is None else AttemptTimeout(context.per_try_timeout_s, context.now)
            ),
            "innermost: it only sets what the leaf's one timer obeys; below balance, so that a timeout counts there",
        ),
    ),
)

SERVER = Stack(
    "server, one request",
    (
        admission.DRAIN,
        Layer(
            "trace",
            lambda context: ServedTrace(context.tracing),
            "above everything that may refuse, so that a refusal is in the caller's trace",
        ),
        Layer(
            "metrics",
            lambda context: ServedMetrics(context.metrics, context.now),
            "above deadline and concurrency, so that refusals are counted",
        ),
        admission.DEADLINE,
        admission.CONCURRENCY,
    ),
)
"""The entry adapter above it has verified the peer and stripped what may not be believed."""
