"""The built-in policy: every default of meshlib, once, as it would be written in mesh.yaml, with its source.

It is the lowest level of precedence (built-in, then `defaults`, service, route, call). The descriptions in the JSON
Schema and the values that `effective` merges are both made from this table.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class BuiltIn(NamedTuple):
    """`written`: as in mesh.yaml; None means that there is none. `source`: where the number comes from."""

    written: Any
    source: str


BUILT_IN: dict[str, BuiltIn] = {
    "timeout": BuiltIn("10s", "always finite; Envoy has 15s, Istio none"),
    "stream_idle_timeout": BuiltIn("5m", "Envoy stream_idle_timeout"),
    "idempotent": BuiltIn(None, "then the method decides: RFC 9110 section 9.2.2"),
    "retries.max_retries": BuiltIn(1, "Envoy num_retries"),
    "retries.retry_on": BuiltIn(["connect_failure", "reset", 503], "a subset of Istio's, without `cancelled`"),
    "retries.per_try_timeout": BuiltIn(None, "Envoy per_try_timeout: off"),
    "retries.back_off.base_interval": BuiltIn("25ms", "Envoy retry_back_off"),
    "retries.back_off.max_interval": BuiltIn("250ms", "Envoy retry_back_off: ten times the base"),
    "retries.back_off.multiplier": BuiltIn(None, "then full jitter, as Envoy has it"),
    "retries.budget.percent": BuiltIn("20%", "Finagle RetryBudget, Linkerd"),
    "retries.budget.min_per_second": BuiltIn(10, "Finagle RetryBudget, Linkerd"),
    "load_balancer.policy": BuiltIn("peak_ewma", "Finagle, Linkerd"),
    "mtls": BuiltIn("strict", "safe by default"),
    "limits.max_timeout": BuiltIn("30s", "three times the built-in timeout"),
    "limits.max_retries": BuiltIn(3, "gRPC: 5 attempts at most; Envoy: 3 retries"),
    "limits.max_request_body": BuiltIn("100MiB", "what fits in the memory of a small process"),
    "limits.max_response_body": BuiltIn("100MiB", "what fits in the memory of a small process"),
    "limits.max_decoded_body": BuiltIn("100MiB", "against decompression bombs"),
    "connection_pool.max_connections": BuiltIn(32, "per endpoint and event loop; beyond it calls wait"),
    "connection_pool.idle_timeout": BuiltIn("60s", "below the 75s of nginx's keepalive_timeout"),
    "connection_pool.max_age": BuiltIn("30m", "so that connections follow certificates and DNS"),
    "connection_pool.connect_timeout": BuiltIn("1s", "Linkerd connect timeout"),
    "outlier_detection.consecutive_errors": BuiltIn(5, "Envoy consecutive_5xx"),
    "outlier_detection.base_ejection_time": BuiltIn("30s", "Envoy, gRPC A50"),
    "outlier_detection.max_ejection_percent": BuiltIn("50%", "Envoy and gRPC A50 have 10%, at least one"),
    "circuit_breaker.max_requests": BuiltIn(1024, "Envoy, gRPC A32"),
    "circuit_breaker.max_pending": BuiltIn(128, "Envoy has 1024: a queue this long is already a failure"),
}

CEILINGS: tuple[tuple[str, str], ...] = (
    ("timeout", "limits.max_timeout"),
    ("retries.max_retries", "limits.max_retries"),
    ("retries.per_try_timeout", "timeout"),
    ("retries.back_off.base_interval", "retries.back_off.max_interval"),
)
"""(value, its ceiling). Written at the ceiling's level or below, a larger value is a mistake; inherited from a level
above, it is lowered to the ceiling."""


def _tree() -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, (written, _) in BUILT_IN.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if written is not None:
            node[last] = written
    return tree


BUILT_IN_TREE = _tree()
"""The same values as a service would have them in mesh.yaml."""
