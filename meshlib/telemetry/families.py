"""The names of `/metrics`: type, unit and labels of each family, as data.

A label is a name of the policy, an address, a verified service or the kind of an error: never anything a caller can
make up. `docs/design.md` and dashboards rely on these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

DROPPED = "meshlib_metric_series_dropped_total"


class Family(NamedTuple):
    """One metric: its type, what it says (with the unit), and the names of its labels, in order."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "meshlib_policy_version": Family(
        "gauge", "Version of the policy in force, by resource: equal where the policy is.", ("resource",)
    ),
    "meshlib_policy_rejected_total": Family(
        "counter", "Policies that were refused; the last good one stayed in force.", ("resource",)
    ),
    "meshlib_control_up": Family("gauge", "1 while the config service answers this process.", ()),
    "meshlib_control_staleness_seconds": Family(
        "gauge", "Seconds since the config service last answered; calls go on with what it said last.", ()
    ),
    "meshlib_calls_total": Family(
        "counter",
        "Calls made, retries not counted apart; class is 2xx to 5xx, or the kind of the error that ended it.",
        ("source", "destination", "route", "class"),
    ),
    "meshlib_call_duration_seconds": Family(
        "histogram",
        "Seconds from a call to the end of its reply's body, retries included.",
        ("source", "destination", "route"),
    ),
    "meshlib_attempts_total": Family(
        "counter",
        "Attempts made, by what they were made for: first, or the failure retried.",
        ("destination", "reason"),
    ),
    "meshlib_mirrored_total": Family(
        "counter",
        "Calls drawn for a mirror: sent, same or different (sent and compared), skipped (streamed body), dropped (too "
        "many in flight) or failed.",
        ("source", "destination", "route", "outcome"),
    ),
    "meshlib_faults_injected_total": Family(
        "counter", "Faults injected on purpose: delay or abort.", ("source", "destination", "route", "kind")
    ),
    "meshlib_endpoint_state": Family(
        "gauge", "1 for the state an endpoint is in, as this process sees it.", ("destination", "endpoint", "state")
    ),
    "meshlib_certificate_expiry_seconds": Family(
        "gauge", "Seconds until the certificate of this process expires; negative when it has.", ()
    ),
    "meshlib_served_total": Family(
        "counter",
        "Requests served; class is 2xx to 5xx, or the kind of the error that ended it.",
        ("source", "route", "class"),
    ),
    "meshlib_served_duration_seconds": Family(
        "histogram", "Seconds from a request to the end of its reply's body.", ("source", "route")
    ),
    DROPPED: Family("counter", "Bindings of a series beyond the bound of its family, counted as `other`.", ("family",)),
}
