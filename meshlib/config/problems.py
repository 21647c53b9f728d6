"""From findings to problems: the order, the number and the words in which mistakes are reported.

A finding knows its place when it is made. Here findings are sorted as in the file, cut to MAX_PROBLEMS, and get their
"did you mean": only those that are shown pay for the search.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from meshlib.errors import ConfigError, Problem

MAX_PROBLEMS = 100
"""Problems listed for one configuration; the rest is counted. Nobody reads more, and hostile input has millions."""

MAX_CHOICES = 2000
"""Names searched for a "did you mean"; beyond that the search costs more than the hint is worth."""

DICT, OVERRIDES = "<dict>", "<overrides>"
"""The file names of what is given in Python: it has no lines, so its problems have line and column 0."""

Path = tuple[str | int, ...]
"""Where in the document: keys as they are written, and indices."""

_PLAIN_KEY = re.compile(r"[\w./*<-]{1,100}\Z")


class Place(NamedTuple):
    """Counted from 1; line 0 in what has no lines, such as a policy of the config service."""

    file: str
    line: int
    column: int

    @property
    def where(self) -> str:
        """`file:line`, or just the name of what has no lines."""
        return f"{self.file}:{self.line}" if self.has_lines else self.file

    @property
    def has_lines(self) -> bool:
        """Is it in a text that the user can look at?"""
        return self.line > 0 and self.file not in (DICT, OVERRIDES)


class Finding(NamedTuple):
    """A mistake before it is worded: `word` was written, one of `choices` may have been meant."""

    place: Place
    path: Path
    message: str
    word: str = ""
    choices: Iterable[str] = ()


def path_text(path: Path) -> str:
    """`services.inventory.routes[0].backends[1].subset`; odd keys are quoted in brackets."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.match(step):
            text += f".{step}" if text else step
        else:
            text += f"[{step[:60]!r}]"
    return text


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'retries'?)`, or nothing."""
    near = difflib.get_close_matches(word[:100], islice(choices, MAX_CHOICES), n=1, cutoff=0.6) if word else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def config_error(findings: Iterable[Finding]) -> ConfigError:
    """All findings as one error: sorted by file and place, the same sentence at the same place once."""
    ordered = sorted({(f.place, f.path, f.message): f for f in findings}.values(), key=lambda f: f.place)
    problems = [_problem(f) for f in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        more = ordered[MAX_PROBLEMS]
        problems.append(_problem(more._replace(path=(), message=f"and {len(ordered) - MAX_PROBLEMS} more", word="")))
    return ConfigError(problems)


def _problem(found: Finding) -> Problem:
    file, line, column = found.place if found.place.has_lines else Place(found.place.file, 0, 0)
    return Problem(file, line, column, path_text(found.path), found.message + did_you_mean(found.word, found.choices))
