"""Dates of HTTP (RFC 9110 §5.6.7): the three forms that a recipient has to take, and nothing else.

    Sun, 06 Nov 1994 08:49:37 GMT    IMF-fixdate, the one that is sent
    Sunday, 06-Nov-94 08:49:37 GMT   RFC 850
    Sun Nov  6 08:49:37 1994         asctime

The day of the week is not compared with the date.
"""

from __future__ import annotations

import calendar
import re
from datetime import UTC, date, datetime

_MONTHS = {name: number for number, name in enumerate(calendar.month_abbr) if name}
_DAY, _WEEKDAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)", r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_MONTH, _TIME = rf"(?P<month>{'|'.join(_MONTHS)})", r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_DAY}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT",
        rf"{_WEEKDAY}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT",
        rf"{_DAY} {_MONTH} (?P<day>[0-9]{{2}}| [0-9]) {_TIME} (?P<year>[0-9]{{4}})",
    )
)
FUTURE_YEARS_MAX = 50
"""A year of two digits that would be further in the future than this is of the century before (RFC 9110)."""


def http_date_unix(text: str, now_unix: float) -> float | None:
    """The moment, in seconds since 1970; None where it is no date of HTTP. `now_unix`: decides a year of two digits.

    >>> http_date_unix("Sun Nov  6 08:49:37 1994", 0.0)
    784111777.0
    """
    found = next((match for form in _FORMS if (match := form.fullmatch(text))), None)
    if found is None:
        return None
    year, month, day = int(found["year"]), _MONTHS[found["month"]], int(found["day"])
    if len(found["year"]) == 2:
        this_year = datetime.fromtimestamp(now_unix, UTC).year
        year += this_year - this_year % 100
        if year > this_year + FUTURE_YEARS_MAX:
            year -= 100
    hour, minute, second = int(found["hour"]), int(found["minute"]), int(found["second"])
    if hour > 23 or minute > 59 or second > 60:  # 60: a leap second
        return None
    try:
        date(year, month, day)
    except ValueError:
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))
