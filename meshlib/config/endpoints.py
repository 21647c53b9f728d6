"""Where a service listens: addresses, entries and sources as they are written, and the `Endpoint`s they become."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, RootModel, WithJsonSchema

from meshlib.endpoint import Endpoint

from .fields import OneOf, Section, Text, whole
from .units import quoted

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")
_ADDRESS_SCHEMA = {"type": "string", "pattern": r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"}


def parse_address(value: Any, *, lowest_port: int = 1) -> tuple[str, int]:
    """`host:port` or `[ipv6]:port` → (host without brackets, in lower case; port). Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError(f"must be text such as '127.0.0.1:8080', not {quoted(value)}")
    host, colon, digits = value.rpartition(":")
    if not colon or not _is_host(host):
        raise ValueError(f"{quoted(value)} is not an address: write host:port or [ipv6]:port, such as 127.0.0.1:8080")
    port = int(digits) if re.fullmatch("[0-9]{1,5}", digits) else -1
    if not lowest_port <= port <= 65_535:
        raise ValueError(f"{quoted(value)} has no valid port: a port is a number from {lowest_port} to 65535")
    return host.strip("[]").lower(), port


def is_loopback(host: str) -> bool:
    """Is it this machine: 127.0.0.0/8, ::1 or `localhost`?"""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host(host: str) -> bool:
    try:
        if host.startswith("["):
            return host.endswith("]") and ipaddress.IPv6Address(host[1:-1]).scope_id is None
        if re.fullmatch(r"[0-9.]+", host):
            return bool(ipaddress.IPv4Address(host))
    except ValueError:
        return False
    return _HOST.match(host) is not None


def _checked(value: Any) -> str:
    parse_address(value)
    return str(value)


def _listening(value: Any) -> str:
    parse_address(value, lowest_port=0)
    return str(value)


Address = Annotated[str, BeforeValidator(_checked), WithJsonSchema(_ADDRESS_SCHEMA)]
ListenAddress = Annotated[str, BeforeValidator(_listening), WithJsonSchema(_ADDRESS_SCHEMA)]


class FullEntry(Section):
    """One endpoint with what is known about it."""

    address: Address = Field(description="host:port or [ipv6]:port; the port is from 1 to 65535.")
    zone: Text = Field(default="", description="Where it runs, such as eu-1a.")
    weight: Annotated[int, whole(1, 128)] = Field(
        default=1, description="Relative share of the calls, from 1 to 128 (Envoy)."
    )
    labels: dict[str, Text] = Field(default={}, description="What subsets select by.")

    def endpoint(self) -> Endpoint:
        """The endpoint that this entry describes."""
        host, port = parse_address(self.address)
        return Endpoint(host, port, self.zone, self.weight, self.labels)


def _entry(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


Entry = Annotated[FullEntry, BeforeValidator(_entry, json_schema_input_type=Address | FullEntry)]


class EntryList(RootModel[tuple[Entry, ...]]):
    """The content of an endpoint file: a list of entries, in YAML or JSON."""


class Source(OneOf):
    """One source of endpoints: exactly one of the fields."""

    static: tuple[Entry, ...] | None = Field(
        default=None, description="A list of host:port, or of mappings with an address."
    )
    file: Text | None = Field(
        default=None, description="A YAML or JSON file with such a list, relative to this file; an edit is picked up."
    )
