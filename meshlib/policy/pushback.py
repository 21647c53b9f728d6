"""grpc-retry-pushback-ms: when a server says that a call may be tried again, or that it may not. Source: gRFC A6."""

from __future__ import annotations

import re

PUSHBACK = b"grpc-retry-pushback-ms"
NEVER = -1.0
"""What is said by a negative number, or by anything that is no signed 32-bit number."""

_MILLISECONDS = re.compile(rb"0|[1-9][0-9]{0,9}").fullmatch
_INT32_MAX = 2**31 - 1


def pushback_s(value: bytes | None) -> float | None:
    """Seconds, exactly, in the place of the back-off; NEVER: do not try again; None: the server said nothing.

    >>> pushback_s(b"10"), pushback_s(b"-500"), pushback_s(None)
    (0.01, -1.0, None)
    """
    if value is None:
        return None
    valid = _MILLISECONDS(value) and int(value) <= _INT32_MAX
    return int(value) / 1000 if valid else NEVER
