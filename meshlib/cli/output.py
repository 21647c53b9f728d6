"""How commands speak: JSON or aligned text on stdout, refusals on stderr with the right exit code.

What comes from other processes (labels, reasons) is text of strangers: a control character in it would be obeyed by the
terminal, so every cell is escaped (`telemetry.one_line`). Colour only where click finds a terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from ..errors import ConfigError, MeshError

NO, REFUSED = 1, 2
"""Exit codes: the answer is no; the command cannot be run like this."""

COLOURS = {"ready": "green", "ok": "green", "applied": "green", "absent": "yellow", "draining": "yellow",
           "behind": "yellow", "warning": "yellow", "rejected": "red", "problem": "red"}  # fmt: skip
"""Of a word that says how something is."""

_UNITS = ((3_600, "h"), (60, "m"), (1, "s"))

as_json = click.option("--json", is_flag=True, help="Print JSON on stdout.")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def no(message: str) -> NoReturn:
    """Say why not, on stderr; exit code 1."""
    click.echo(message, err=True)
    raise SystemExit(NO)


def refuse(message: str) -> NoReturn:
    """Say why the command cannot be run like this, on stderr; exit code 2."""
    click.echo(f"meshlib: {message}", err=True)
    raise SystemExit(REFUSED)


def progress(message: str) -> None:
    """What is being waited for, on stderr, where a person looks on."""
    if sys.stderr.isatty():
        click.echo(message, err=True)


@contextmanager
def mesh_errors() -> Iterator[None]:
    """A MeshError inside becomes its sentences on stderr and exit code 1."""
    try:
        yield
    except ConfigError as error:
        no(str(error))
    except MeshError as error:
        no(f"meshlib: {error}")


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Aligned columns, two spaces apart, under their titles; nothing is cut, so that a pipe gets all of it."""
    from ..telemetry.one_line import one_line

    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = [click.style(_line(titles, widths), bold=True)]
    return "\n".join([*lines, *(_line(row, widths) for row in cells)])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (width - len(cell)) for cell, width in zip(cells, widths, strict=True)]
    if padded:
        padded[-1] = cells[-1]
    return "  ".join(
        click.style(text, fg=COLOURS.get(cell)) if cell in COLOURS else text
        for text, cell in zip(padded, cells, strict=True)
    ).rstrip()


def span(seconds: float) -> str:
    """A time span as people say it, rounded: `76h` from a day on, `15h12m`, `12m5s`, `0s`. It is a duration of
    mesh.yaml, so that it can be typed again.
    """
    left = max(0, round(seconds))
    for large, small in ((86_400, 3_600), (3_600, 60)):
        if left >= large:
            left = round(left / small) * small
            break
    said = ""
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        said += f"{count}{unit}" if count else ""
    return said or "0s"


def moment(unix: float) -> str:
    """A time as `2030-01-31 12:00:00Z`."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(unix))
