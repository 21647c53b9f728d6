"""The units of mesh.yaml: durations, shares and sizes, as text and as numbers.

A duration is GEP-2257 (Gateway API): one to four times a number of one to five digits and `h`, `m`, `s` or `ms`; no
fractions, no sign. A share is a percentage from 0% to 100% with at most six decimals. A size is a whole number of
bytes, or a whole number and a unit: `KiB MiB GiB` are powers of 1024, `kB KB MB GB` powers of 1000.

Every parser raises ValueError with a sentence: what was given, what is allowed, an example.
"""

from __future__ import annotations

import re
from typing import Any

DURATION_PATTERN = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"
SHARE_PATTERN = r"^[0-9]{1,3}(\.[0-9]{1,6})?%$"
SIZE_PATTERN = r"^[0-9]{1,12}(B|kB|KB|MB|GB|KiB|MiB|GiB)?$"

MAX_SIZE = 10**15
"""Bytes. Larger than any body; keeps a slip of the unit from meaning "no limit"."""

_DURATION = re.compile(DURATION_PATTERN.replace("$", r"\Z"))
_SHARE = re.compile(SHARE_PATTERN.replace("$", r"\Z"))
_SIZE = re.compile(SIZE_PATTERN.replace("$", r"\Z"))
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse_duration(value: Any) -> float:
    """Seconds, never negative. Raises ValueError."""
    if not isinstance(value, str) or not _DURATION.match(value):
        raise ValueError(
            f"{quoted(value)} is not a duration: write up to four whole numbers, each with h, m, s or ms, such as 250ms"
        )
    return sum(int(n) * _MILLISECONDS[unit] for n, unit in re.findall(r"([0-9]+)(ms|[hms])", value)) / 1000


def format_duration(seconds: float) -> str:
    """The canonical text of a duration, to the millisecond: `1h30m`, `600ms`, `0s`. Raises ValueError."""
    if not 0 <= seconds < 100_000 * 3600:
        raise ValueError(f"{seconds!r} seconds cannot be written as a duration: 0 up to 99999h are possible")
    left, parts = round(seconds * 1000), []
    for unit, size in _MILLISECONDS.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_share(value: Any) -> float:
    """A fraction from 0.0 to 1.0. Raises ValueError."""
    if not isinstance(value, str) or not _SHARE.match(value) or float(value[:-1]) > 100:
        raise ValueError(f"{quoted(value)} is not a share: write a percentage from 0% to 100%, such as 10% or 0.01%")
    return float(value[:-1]) / 100


def parse_size(value: Any) -> int:
    """Bytes, from 1 to MAX_SIZE. Raises ValueError."""
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and _SIZE.match(value):
        number = value.rstrip("BKkMGi")
        size = int(number) * _BYTES[value[len(number) :] or "B"]
    if not 1 <= size <= MAX_SIZE:
        raise ValueError(
            f"{quoted(value)} is not a size: write a number of bytes above 0, or with kB, MB, GB, KiB, MiB or GiB, "
            "such as 64KiB"
        )
    return size


def quoted(value: Any) -> str:
    """A value of the file as a message shows it: one line, at most 60 characters, nothing unprintable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:60]
