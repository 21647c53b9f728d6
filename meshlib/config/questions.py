"""What a name server is asked for the endpoints of a service, and what is known of the answer."""

from __future__ import annotations

import ipaddress
from typing import Literal, NamedTuple

from meshlib.endpoint import Endpoint


class Question(NamedTuple):
    """`dns`: the addresses of `name`, each with `port`. `srv`: its SRV records, which name hosts and ports."""

    kind: Literal["dns", "srv"]
    name: str
    port: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class Resolved(NamedTuple):
    """`trouble`: why there is no endpoint; '' where there is one. `missing`: the name does not exist."""

    endpoints: tuple[Endpoint, ...]
    trouble: str = ""
    missing: bool = False


def known_beforehand(name: str) -> tuple[str, ...]:
    """The addresses of a name that no name server is asked for: an IP literal, or localhost (RFC 6761); else none."""
    try:
        return (str(ipaddress.ip_address(name)),)
    except ValueError:
        return ("127.0.0.1",) if name.rstrip(".") == "localhost" or name.endswith(".localhost") else ()
