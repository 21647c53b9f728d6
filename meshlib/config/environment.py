"""What the environment says in the place of mesh.yaml: where the config service is, and what this process registers.

Rules of this file. An unset or empty variable says nothing. One that cannot be understood is a ConfigError that begins
with its name; its value obeys the rules of the field that it wins over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from meshlib.errors import ConfigError

from .bootstrap import at_most_urls, parse_control_url
from .endpoints import bounded_labels, bounded_zone, parse_address
from .units import quoted

T = TypeVar("T")


def control_urls(environ: Mapping[str, str]) -> tuple[str, ...]:
    """`MESHLIB_CONTROL_URLS`, by comma; () where it says nothing. It wins over `control.urls`. Raises ConfigError."""
    return _read(environ, "MESHLIB_CONTROL_URLS", _urls) or ()


def zone(environ: Mapping[str, str]) -> str:
    """`MESHLIB_ZONE`; '' where it says nothing. It wins over `instance.zone`. Raises ConfigError."""
    return _read(environ, "MESHLIB_ZONE", bounded_zone) or ""


def labels(environ: Mapping[str, str]) -> dict[str, str]:
    """`MESHLIB_LABELS`, such as `version=v2,track=canary`; {} where it says nothing.

    It wins over `instance.labels`, as a whole. Raises ConfigError.
    """
    return _read(environ, "MESHLIB_LABELS", _labels) or {}


def _read(environ: Mapping[str, str], name: str, parse: Callable[[str], T]) -> T | None:
    text = environ.get(name, "").strip()
    try:
        return parse(text) if text else None
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip() for url in text.split(","))
    for url in urls:
        parse_control_url(url)
    return at_most_urls(urls)


def _labels(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in text.split(","):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not name or not equals:
            raise ValueError(f"{quoted(pair)} is not a label: write name=value, such as version=v2,track=canary")
        if name in found:
            raise ValueError(f"names the label {quoted(name)} twice")
        found[name] = value
    return bounded_labels(found)


def check_address(name: str, value: str) -> None:
    """ConfigError unless the variable `name` has an address, host:port."""
    try:
        parse_address(value)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
