"""Regular expressions of a policy: RE2, in time linear in what is matched, whatever somebody wrote.

The syntax is RE2's (no back-references, no look-around); a pattern must take the whole value (Envoy `full_match`). The
library is google-re2, of the extra `regex`: where it is missing, a policy with a regular expression is refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

PATTERN_CHARS_MAX = 1024
"""Characters of a pattern (ISTIO-SECURITY-2026-006: an unbounded one is an attack on whoever compiles it)."""
PROGRAM_BYTES_MAX = 1 << 20
"""Memory that one compiled pattern and its automata may take, in bytes: what needs more is refused."""
VALUE_CHARS_MAX = 16 * 1024
"""Characters of a value that is matched; a longer one matches nothing."""
COMPILED_MAX = 4096
"""Patterns that are kept compiled, so that a new policy with the same ones costs nothing."""


class Pattern:
    """A compiled regular expression. Equal where the text is."""

    __slots__ = ("_fullmatch", "text")

    def __init__(self, text: str, fullmatch: Any) -> None:
        self.text, self._fullmatch = text, fullmatch

    def takes(self, value: str) -> bool:
        """Does the whole of `value` match?"""
        return len(value) <= VALUE_CHARS_MAX and self._fullmatch(value) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


@lru_cache(COMPILED_MAX)
def compiled(text: str) -> Pattern:
    """The pattern. ValueError says what is wrong with it, or that the library is missing."""
    if len(text) > PATTERN_CHARS_MAX:
        raise ValueError(f"has {len(text)} characters; a regular expression has at most {PATTERN_CHARS_MAX}")
    try:
        import re2
    except ImportError:
        raise ValueError("regular expressions need: pip install 'service-meshlib[regex]'") from None
    options = re2.Options()
    options.log_errors = False
    options.max_mem = PROGRAM_BYTES_MAX
    try:
        return Pattern(text, re2.compile(text, options).fullmatch)
    except re2.error as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"{text!r} is not a regular expression of RE2: {reason}") from None
