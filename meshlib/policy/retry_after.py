"""Retry-After (RFC 9110 §10.2.3): how long a server asks us to stay away.

Anything malformed is ignored, never slept for.
"""

from __future__ import annotations

import re

from .http_date import http_date_unix

STATUSES = frozenset((429, 503))
"""Where it is honoured (linkerd; urllib3 adds 413)."""
CAP_S = 300.0
"""Longest wait that is believed, in seconds (Envoy `rate_limited_retry_back_off`, linkerd)."""
LENGTH_MAX = 64
"""A longer value is not a delay: keeps the date parser away from hostile text."""

_SECONDS = re.compile(r"[0-9]{1,9}").fullmatch


def retry_after_s(value: str, status: int, now_unix: float, cap_s: float = CAP_S) -> float | None:
    """Seconds to wait, 0 to `cap_s`; None when the value says nothing that may be used. `now_unix`: wall clock."""
    text = value.strip(" \t")
    if status not in STATUSES or not text.isascii() or len(text) > LENGTH_MAX:
        return None
    if _SECONDS(text):
        return min(cap_s, float(text))
    when = http_date_unix(text, now_unix)
    return None if when is None else min(cap_s, max(0.0, when - now_unix))
