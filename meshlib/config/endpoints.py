"""Where a service listens: addresses, entries and sources as they are written, and the `Endpoint`s they become."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, RootModel, WithJsonSchema

from meshlib.endpoint import Endpoint

from .fields import OneOf, Section, Text, whole
from .units import quoted

LABELS_MAX = 64
"""Labels of one endpoint; one more is refused. Every process that calls it keeps them."""

LABEL_CHARS_MAX = 256
"""Characters of a label's name, of its value, and of a zone; a longer one is refused."""

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?\Z")
_NAME_SCHEMA = {"type": "string", "pattern": r"^[A-Za-z0-9._-]+$"}
ADDRESS_SCHEMA = {"type": "string", "pattern": r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"}
"""Of `host:port` or `[ipv6]:port` in the JSON Schema."""


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


def bounded_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The same labels; ValueError where there are too many, or one is too long or has no name."""
    if len(labels) > LABELS_MAX:
        raise ValueError(f"has {len(labels)} labels; at most {LABELS_MAX} are possible")
    for name, value in labels.items():
        if not 1 <= len(name) <= LABEL_CHARS_MAX:
            raise ValueError(f"has a label with a name of {len(name)} characters; 1 to {LABEL_CHARS_MAX} are possible")
        if len(value) > LABEL_CHARS_MAX:
            message = f"has a label {quoted(name)} with {len(value)} characters; at most {LABEL_CHARS_MAX} are possible"
            raise ValueError(message)
    return dict(labels)


def bounded_zone(zone: str) -> str:
    """The same zone; ValueError where it is too long."""
    if len(zone) > LABEL_CHARS_MAX:
        raise ValueError(f"has {len(zone)} characters; at most {LABEL_CHARS_MAX} are possible")
    return zone


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


def _checked_name(value: Any) -> str:
    if not isinstance(value, str) or not _HOST.match(value):
        raise ValueError(f"must be a name such as _http._tcp.orders.internal, not {quoted(value)}")
    return value.lower()


def _listening(value: Any) -> str:
    parse_address(value, lowest_port=0)
    return str(value)


Address = Annotated[str, BeforeValidator(_checked), WithJsonSchema(ADDRESS_SCHEMA)]
ListenAddress = Annotated[str, BeforeValidator(_listening), WithJsonSchema(ADDRESS_SCHEMA)]
SrvName = Annotated[str, BeforeValidator(_checked_name), WithJsonSchema(_NAME_SCHEMA)]
Zone = Annotated[Text, AfterValidator(bounded_zone), Field(json_schema_extra={"maxLength": LABEL_CHARS_MAX})]
Weight = Annotated[int, whole(1, 128)]
Labels = Annotated[
    dict[str, Text], AfterValidator(bounded_labels), Field(json_schema_extra={"maxProperties": LABELS_MAX})
]


class FullEntry(Section):
    """One endpoint with what is known about it."""

    address: Address = Field(description="host:port or [ipv6]:port; the port is from 1 to 65535.")
    zone: Zone = Field(default="", description="Where it runs, such as eu-1a.")
    weight: Weight = Field(default=1, description="Relative share of the calls, from 1 to 128 (Envoy).")
    labels: Labels = Field(default={}, description="What subsets select by.")

    def endpoint(self) -> Endpoint:
        """The endpoint that this entry describes."""
        host, port = parse_address(self.address)
        return Endpoint(host, port, self.zone, self.weight, self.labels)


def _entry(value: Any) -> Any:
    return {"address": value} if isinstance(value, str) else value


Entry = Annotated[FullEntry, BeforeValidator(_entry, json_schema_input_type=Address | FullEntry)]


class EntryList(RootModel[tuple[Entry, ...]]):
    """The content of an endpoint file: a list of entries, in YAML or JSON."""


class RegistrySource(Section):
    """It has no fields: what is registered with the config service under the name of the service."""


class SrvEntry(Section):
    """A name with SRV records, and what is known about the endpoints that they name."""

    name: SrvName = Field(description="Such as _http._tcp.orders.internal.")
    zone: Zone = Field(default="", description="Where they run, such as eu-1a.")
    labels: Labels = Field(default={}, description="What subsets select by.")


def _srv(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Source(OneOf):
    """One source of endpoints: exactly one of the fields."""

    static: tuple[Entry, ...] | None = Field(
        default=None, description="A list of host:port, or of mappings with an address."
    )
    file: Text | None = Field(
        default=None, description="A YAML or JSON file with such a list, relative to this file; an edit is picked up."
    )
    dns: Entry | None = Field(
        default=None,
        description="host:port, or a mapping with it as address: every address that the name has (A, else AAAA).",
    )
    srv: Annotated[SrvEntry, BeforeValidator(_srv, json_schema_input_type=SrvName | SrvEntry)] | None = Field(
        default=None, description="A name whose SRV records say host, port, priority and weight."
    )
    registry: RegistrySource | None = Field(
        default=None, description="`{}`: what is registered with the config service; it needs `control`."
    )
