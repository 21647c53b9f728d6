"""How commands speak: JSON on stdout, refusals on stderr with the right exit code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from ..errors import ConfigError, MeshError

NO, REFUSED = 1, 2
"""Exit codes: the answer is no; the command cannot be run like this."""

as_json = click.option("--json", is_flag=True, help="Print JSON on stdout.")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def no(message: str) -> NoReturn:
    """Say why not, on stderr; exit code 1."""
    click.echo(message, err=True)
    raise SystemExit(NO)


@contextmanager
def mesh_errors() -> Iterator[None]:
    """A MeshError inside becomes its sentences on stderr and exit code 1."""
    try:
        yield
    except ConfigError as error:
        no(str(error))
    except MeshError as error:
        no(f"meshlib: {error}")
