"""A finding: one thing that was looked at, and how it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`subject`: what was looked at, in a word or two. `said`: one line; unless all is well it says what to do.

    A problem keeps something from working here; a warning may be meant so.
    """

    level: Level
    subject: str
    said: str


def ok(subject: str, said: str) -> Finding:
    """As it should be."""
    return Finding("ok", subject, said)


def warning(subject: str, said: str) -> Finding:
    """It may be meant so."""
    return Finding("warning", subject, said)


def problem(subject: str, said: str) -> Finding:
    """Something does not work here."""
    return Finding("problem", subject, said)
