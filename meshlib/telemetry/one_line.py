"""Text that a line of a log or a span cannot be broken by: one line of at most 8 KiB.

Rules (OWASP Logging Cheat Sheet; CWE-117): control characters, line separators and lone surrogates are escaped where
they enter a line.
"""

from __future__ import annotations

import re

LINE_BYTES_MAX = 8192
"""Of one event, in UTF-8, without its line end."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def one_line(text: str) -> str:
    r"""`text` on one line of at most 8 KiB: controls, U+2028, U+2029 and lone surrogates are `\xNN`, `\uNNNN`.

    A longer text is cut and ends with `…`.
    """
    safe = _UNSAFE.sub(_escape, text[: LINE_BYTES_MAX + 1])
    encoded = safe.encode()
    if len(encoded) <= LINE_BYTES_MAX:
        return safe
    return encoded[: LINE_BYTES_MAX - len("…".encode())].decode(errors="ignore") + "…"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
