"""The bootstrap part of mesh.yaml: what each process, or the config service, reads once when it starts."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from .endpoints import ADDRESS_SCHEMA, Labels, ListenAddress, Weight, Zone, parse_address
from .fields import Duration, NotEmpty, Section, Share
from .units import DURATION_PATTERN, format_duration, parse_duration, quoted

BOOTSTRAP = (
    "mesh", "trust_domain", "control", "identity", "policy_source", "ca", "state_dir", "admin", "instance", "dns",
    "telemetry",
)  # fmt: skip
"""The fields that a process reads once. The others, `defaults`, `services` and `gateways`, are the policy."""

URLS_MAX = 16
"""URLs of the config service; one more is refused."""

NAMESERVERS_MAX = 8
"""Name servers; one more is refused. A lookup has time for a few."""

_URL_SCHEMA = {"type": "string", "pattern": r"^https://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}$"}


def parse_control_url(value: Any) -> tuple[str, int]:
    """`https://host:port` → (host without brackets, in lower case; port). Raises ValueError."""
    if not isinstance(value, str) or not value.startswith("https://"):
        raise ValueError(f"{quoted(value)} is not a URL of the config service: write https://host:port")
    try:
        return parse_address(value.removeprefix("https://"))
    except ValueError:
        message = f"{quoted(value)} is not a URL of the config service: write https://host:port, and nothing after it"
        raise ValueError(message) from None


def at_most_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """The same URLs; ValueError where there are more than URLS_MAX."""
    if len(urls) > URLS_MAX:
        raise ValueError(f"has {len(urls)} URLs; name at most {URLS_MAX}")
    return urls


def _url(value: Any) -> str:
    parse_control_url(value)
    return str(value)


def _from_to(shortest: str, longest: str) -> BeforeValidator:
    """The check of a duration from one to another, both included."""
    low, high = parse_duration(shortest), parse_duration(longest)

    def check(value: Any) -> float:
        if low <= (seconds := parse_duration(value)) <= high:
            return seconds
        raise ValueError(f"must be a duration from {shortest} to {longest}, not {value}")

    return BeforeValidator(check)


def _nameserver(value: Any) -> str:
    host, _ = parse_address(value)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"must be an IP address with a port, such as 127.0.0.1:53, not {quoted(value)}") from None
    return str(value)


Nameserver = Annotated[str, BeforeValidator(_nameserver), WithJsonSchema(ADDRESS_SCHEMA)]

_DURATION_SCHEMA = WithJsonSchema({"type": "string", "pattern": DURATION_PATTERN})

ControlUrl = Annotated[str, BeforeValidator(_url), WithJsonSchema(_URL_SCHEMA)]
ControlUrls = Annotated[
    tuple[ControlUrl, ...],
    NotEmpty,
    AfterValidator(at_most_urls),
    Field(json_schema_extra={"minItems": 1, "maxItems": URLS_MAX}),
]
LeafTtl = Annotated[float, _from_to("5s", "8760h"), _DURATION_SCHEMA]
RootTtl = Annotated[float, _from_to("1m", "87600h"), _DURATION_SCHEMA]


class Control(Section):
    """The config service: it says the policy, who is where, and who is who. Without it, this file is the policy."""

    urls: ControlUrls = Field(description="https://host:port of each of its replicas, from 1 to 16.")
    fallback: Literal["snapshot", "file"] = Field(
        default="snapshot",
        description="What a process starts with while the service is down. snapshot: what it said last. file: the "
        "policy of this file. Built-in: snapshot.",
    )
    start_timeout: Duration = Field(
        default=60.0,
        description="Duration that a start waits for the service where there is no fallback. Built-in: 60s.",
    )


class Identity(Section):
    """How a process proves who it is."""

    source: Literal["dev", "control"] = Field(
        default="dev",
        description="control: the config service signs certificates for those who bring a join token. dev: a local "
        "certificate authority in state_dir, for 127.0.0.1 only. Built-in: control where `control` is given, else dev.",
    )


class Ca(Section):
    """The certificate authority of the config service, which alone reads this."""

    leaf_ttl: LeafTtl = Field(
        default=86_400.0,
        description="Life of a process's certificate, from 5s to 8760h; renewed at half. Built-in: 24h.",
    )
    root_ttl: RootTtl = Field(
        default=31_536_000.0, description="Life of a root, from 1m to 87600h, at least leaf_ttl. Built-in: 8760h."
    )

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.leaf_ttl > self.root_ttl:
            leaf, root = format_duration(self.leaf_ttl), format_duration(self.root_ttl)
            raise ValueError(f"leaf_ttl is {leaf}, above root_ttl, which is {root}; lower the one or raise the other")
        return self


class Admin(Section):
    """The port for probes and scrapers that have no certificate."""

    listen: ListenAddress = Field(default="127.0.0.1:0", description="host:port; port 0: any. Built-in: 127.0.0.1:0.")


class Instance(Section):
    """What this process registers beside its address. MESHLIB_ZONE and MESHLIB_LABELS win."""

    zone: Zone = Field(default="", description="Where it runs, such as eu-1a.")
    weight: Weight = Field(default=1, description="Relative share of the calls, from 1 to 128 (Envoy). Built-in: 1.")
    labels: Labels = Field(default={}, description="What subsets select by.")


class Dns(Section):
    """The name servers. Search domains are those of the system; /etc/hosts is not read."""

    nameservers: Annotated[tuple[Nameserver, ...], Field(max_length=NAMESERVERS_MAX)] = Field(
        default=(), description="host:port of each, as IP addresses. Built-in: those of the system, port 53."
    )


class Tracing(Section):
    """Traces, in the format of W3C and OpenTelemetry."""

    sample: Share = Field(default=0.01, description="Share of new traces that is recorded. Built-in: 1%.")


class Telemetry(Section):
    """What is recorded about calls."""

    tracing: Tracing = Field(default=Tracing(), description="Traces.")
