"""What is printed of a measurement, and which bars it held."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence


class Bars:
    """The highest that each figure may be. `show` prints them; its result is the exit code."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.missed = 0

    def check(self, what: str, value: float, bar: float, unit: str = "", digits: int = 3) -> None:
        """`value` must be at most `bar`; nan, for what could not be measured, is missed."""
        held = value <= bar
        self.missed += not held
        word, unit = "held  " if held else "MISSED", unit and f" {unit}"
        self._lines.append(f"{word}  {what}: {value:,.{digits}f}{unit}, bar {bar:,g}{unit}")

    def show(self) -> int:
        print()
        for line in self._lines:
            print(line)
        sys.stdout.flush()
        return 1 if self.missed else 0


def quantile(values: Sequence[float], share: float) -> float:
    """Of the values, `share` are not above it; nan where there are none."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)] if values else math.nan


def spread(values: Sequence[float], factor: float = 1.0, unit: str = "s", digits: int = 2) -> str:
    """p50, p99 and the maximum, as text."""
    shown = (quantile(values, 0.5), quantile(values, 0.99), max(values, default=math.nan))
    p50, p99, most = (f"{value * factor:.{digits}f}" for value in shown)
    return f"p50 {p50}, p99 {p99}, max {most} {unit}"


def most_in_a_second(times: Iterable[float]) -> int:
    """The most of these moments that lie within one second."""
    ordered, first, most = sorted(times), 0, 0
    for last, at in enumerate(ordered):
        while ordered[first] <= at - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


def tell(line: str) -> None:
    """Progress, for who waits."""
    print(line, file=sys.stderr, flush=True)
