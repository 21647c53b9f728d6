"""How commands speak to people: tables, spans, times."""

from __future__ import annotations

import io
import sys

import click
import pytest

from meshlib.cli.output import moment, progress, span, table
from meshlib.config.units import parse_duration


def test_columns_are_aligned_and_nothing_is_cut() -> None:
    """Two spaces between columns, none at the end of a line, however long a cell is."""
    shown = click.unstyle(table(("A", "B", "C"), [("x" * 200, 1, ""), ("y", 22, "z")]))
    assert shown.splitlines() == [f"A{' ' * 199}  B   C", f"{'x' * 200}  1", f"y{' ' * 199}  22  z"]


def test_only_the_words_of_a_state_have_a_colour() -> None:
    """A cell that is `ready` or `rejected`; not one that contains it."""
    shown = table(("A",), [("ready",), ("already",)])
    assert click.style("ready", fg="green") in shown.splitlines()[1]
    assert shown.splitlines()[2] == "already"


def test_a_cell_is_one_line_without_controls() -> None:
    r"""What a terminal would obey is shown as \xNN."""
    assert click.unstyle(table(("A",), [("a\nb\x1b[0m",)])).splitlines()[1] == r"a\x0ab\x1b[0m"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0s"), (0.4, "0s"), (59.6, "1m"), (61, "1m1s"), (3599, "59m59s"), (3600, "1h"), (3629, "1h"),
        (3631, "1h1m"), (86_399, "24h"), (90_000, "25h"), (91_900, "26h"), (31_535_999, "8760h"),
    ],
)  # fmt: skip
def test_a_span_is_rounded_and_can_be_typed_again(seconds: float, said: str) -> None:
    """As people say it; never negative; in the units of mesh.yaml and of the options."""
    assert span(seconds) == said
    assert abs(parse_duration(said) - max(0, seconds)) <= 1800


def test_a_time_is_utc() -> None:
    """And says so, so that it is the same on every machine."""
    assert moment(1_893_456_000.9) == "2030-01-01 00:00:00Z"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_for_a_person_who_looks_on(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, on stderr; else nothing."""
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    progress("waiting")
    assert stream.getvalue() == ("waiting\n" if terminal else "")
