"""Dates of HTTP: three forms, and nothing else."""

from __future__ import annotations

import pytest

from meshlib.policy.http_date import FUTURE_YEARS_MAX, http_date_unix

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    "text", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms(text: str) -> None:
    """RFC 9110 §5.6.7."""
    assert http_date_unix(text, NOW) == 784_111_777.0


@pytest.mark.parametrize(
    "text",
    ["", "Sun, 06 Nov 1994 24:00:00 GMT", "Sun, 31 Feb 1994 08:49:37 GMT", "06 Nov 1994", "Sun, 06 Nov 1994 08:49:37"],
)
def test_what_is_none(text: str) -> None:
    """Not a date, or not one that there is."""
    assert http_date_unix(text, NOW) is None


def test_a_year_of_two_digits() -> None:
    """At most so many years ahead; else of the century before."""
    ahead = http_date_unix(f"Sunday, 06-Nov-{(2023 + FUTURE_YEARS_MAX) % 100} 08:49:37 GMT", NOW)
    behind = http_date_unix(f"Sunday, 06-Nov-{(2024 + FUTURE_YEARS_MAX) % 100} 08:49:37 GMT", NOW)
    assert ahead is not None
    assert behind is not None
    assert behind < NOW < ahead
