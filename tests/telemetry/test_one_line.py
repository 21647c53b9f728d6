"""Hostile text stays on one line, within its bound."""

from __future__ import annotations

import pytest

from meshlib.telemetry.one_line import LINE_BYTES_MAX, one_line

HOSTILE = "a\r\nb\x1b[31m\x00\x7f\x85\u2028\u2029\ud800é"


def test_one_line_escapes() -> None:
    """Everything that ends a line, moves a cursor or has no UTF-8 is escaped; other text is as it was."""
    assert one_line(HOSTILE) == r"a\x0d\x0ab\x1b[31m\x00\x7f\x85\u2028\u2029\ud800é"
    for code in [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029, 0xD800, 0xDFFF]:
        safe = one_line(f"x{chr(code)}y")
        assert safe.splitlines() == [safe]
        assert safe.isprintable()
        safe.encode()
    assert one_line("plain — text 日本") == "plain — text 日本"


@pytest.mark.parametrize("char", ["x", "é", "日", "\x00", "\U0001f600"])
def test_one_line_bound(char: str) -> None:
    """A text at the bound is kept, a longer one is cut to the bound, whatever its characters cost."""
    width = len(one_line(char).encode())
    fits = char * (LINE_BYTES_MAX // width)
    assert "…" not in one_line(fits)
    cut = one_line(fits + char * 2)
    assert cut.endswith("…")
    assert LINE_BYTES_MAX - 8 < len(cut.encode()) <= LINE_BYTES_MAX
