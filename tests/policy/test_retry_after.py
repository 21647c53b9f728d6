"""Retry-After: urllib3's and linkerd's cases, and hostile values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.policy.retry_after import CAP_S, LENGTH_MAX, retry_after_s

NOW = 1559559600.0
HUGE_YEAR = "Mon, 03 Jun 99999999999 11:30:12 GMT"


@pytest.mark.parametrize(
    ("value", "delay_s"),
    [
        ("120", 120.0),
        (" 120\t", 120.0),
        ("0", 0.0),
        ("3600", CAP_S),
        ("999999999", CAP_S),
        ("99999999999999999999", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        ("²", None),
        ("٣", None),
        ("", None),
        ("5, 10", None),
        ("Mon, 03 Jun 2019 11:01:12 GMT", 72.0),
        ("Mon, 03 Jun 2019 11:30:12 GMT", CAP_S),
        ("Mon, 03 Jun 2009 11:30:12 GMT", 0.0),
        ("Mon, 03 Jun 2019 11:01:12", None),
        ("Mon, 03 Jun 2019 11:01:12 +0100", None),
        ("Mon, 33 Jun 2019 11:01:12 GMT", None),
        (HUGE_YEAR, None),
        ("Mon, 99999999999999999999 Jun 2019 11:30:12 GMT", None),
        ("x" * LENGTH_MAX + " GMT", None),
    ],
)
def test_what_is_believed(value: str, delay_s: float | None):
    """Seconds or an HTTP date, at most the cap; anything else is ignored, never slept for nor raised."""
    assert retry_after_s(value, 503, NOW) == delay_s


@pytest.mark.parametrize(("status", "honoured"), [(503, True), (429, True), (200, False), (413, False), (500, False)])
def test_only_where_it_means_a_delay(status: int, honoured: bool):
    """Honoured on 429 and 503 (linkerd)."""
    assert (retry_after_s("7", status, NOW) == 7.0) is honoured


def test_the_length_bound():
    """Spaces around a value do not count; one that is longer is not looked at, whatever is in it."""
    assert retry_after_s("7".rjust(LENGTH_MAX), 503, NOW) == 7.0
    assert retry_after_s("Mon, 03 Jun 2019 11:01:12 GMT".rjust(LENGTH_MAX), 503, NOW) == 72.0
    assert retry_after_s("Mon, 03 Jun 2019 11:01:12".ljust(LENGTH_MAX) + " GMT", 503, NOW) is None


@given(
    st.one_of(st.text(max_size=80), st.text("0123456789:, GMTJunMoSa+-", max_size=60).map(lambda text: text + " GMT"))
)
def test_nothing_makes_it_raise_or_wait_long(value: str):
    """Whatever a server sends: None, or 0 to the cap."""
    delay = retry_after_s(value, 503, NOW)
    assert delay is None or 0.0 <= delay <= CAP_S
