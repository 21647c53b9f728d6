"""Retry-After (RFC 9110 §10.2.3): how long a server asks us to stay away.

Anything malformed is ignored, never slept for.
"""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

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
    if not text.endswith(" GMT"):
        return None
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return min(cap_s, max(0.0, when.replace(tzinfo=UTC).timestamp() - now_unix))
