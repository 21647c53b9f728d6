"""What a metric counts in: cells that a caller binds once and keeps, and their text (Prometheus exposition 0.0.4).

Rules.
  * A cell never grows: a counter is one number, a histogram one number per bucket and a sum.
  * `self.n += 1` is a load, an addition and a store, and no Python promises that they stay together (free-threaded
    builds and tracing break them apart). So cells change under a lock, held for one or two additions; measured, it
    costs less than a tenth of a microsecond. It is one lock for the process: under the GIL nobody waits for it in
    practice, and one lock can be taken around a fork, so that no child inherits it locked.
  * The lock is re-entrant: a reply that the garbage collector ends is counted on whatever thread it ran on.
Why not OpenTelemetry's instruments: docs/adr/0006-own-counters-and-coin.md.
"""

from __future__ import annotations

import math
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds, in seconds, inclusive: Prometheus' own defaults, and one below for calls within a machine."""
LABEL_CHARS_MAX = 256
"""A longer label value is cut."""

LOCK = threading.RLock()
"""Held for a few lines without a wait, by everything that counts."""
os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class Counter:
    """A number that only grows. Any thread may add."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Count `amount` ≥ 0."""
        with LOCK:
            self.value += amount

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Its text, for the series `name{labels}`."""
        yield f"{name}{braced(labels)} {number(self.value)}"


class Histogram:
    """How many observations fell at or below each of `BUCKETS_S`, and their sum. Any thread may observe."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration in seconds."""
        at = bisect_left(BUCKETS_S, seconds)
        with LOCK:
            self.counts[at] += 1
            self.total += seconds

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """Its text: cumulative buckets, sum and count of one moment."""
        with LOCK:
            counts, total = list(self.counts), self.total
        below, comma = 0, "," if labels else ""
        for bound, count in zip((*BUCKETS_S, math.inf), counts, strict=True):
            below += count
            yield f'{name}_bucket{{{labels}{comma}le="{number(bound)}"}} {below}'
        yield f"{name}_sum{braced(labels)} {number(total)}"
        yield f"{name}_count{braced(labels)} {below}"


def record(seconds: float, histogram: Histogram, *counters: Counter) -> None:
    """One duration, and one more on each of `counters`, for the price of one lock."""
    at = bisect_left(BUCKETS_S, seconds)
    with LOCK:
        histogram.counts[at] += 1
        histogram.total += seconds
        for counter in counters:
            counter.value += 1


def label_text(labels: Mapping[str, str]) -> str:
    """`a="b",c="d"`, escaped by the exposition format: backslash, double quote and line feed."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def number(value: float) -> str:
    """A number as the format spells it."""
    if math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def braced(labels: str) -> str:
    """`{labels}`, or nothing where there are none."""
    return f"{{{labels}}}" if labels else ""


def _escape(value: str) -> str:
    """The exposition is UTF-8: a lone surrogate, which has no UTF-8, is written as its escape."""
    encodable = value[:LABEL_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
    return encodable.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
