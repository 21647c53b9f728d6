"""Durations on the command line: as in mesh.yaml, and as they are printed."""

from __future__ import annotations

import re

import click

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def seconds(text: str, *, plain: bool = False) -> float:
    """Of a duration such as `1h30m`; `plain`: or of a number without a unit, which is seconds. BadParameter."""
    from ..config.units import parse_duration

    if plain and _SECONDS.fullmatch(text):
        return float(text)
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
