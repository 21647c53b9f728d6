"""Listeners of a gateway: which of them takes a request, by the port that it came to and the host that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .match import host_takes


@dataclass(frozen=True, slots=True)
class Listener:
    """`scheme` and `port` are those that its clients use; `hostname` may begin with `*.`; '' takes any host."""

    name: str
    scheme: Literal["http", "https"]
    port: int
    hostname: str = ""

    @property
    def specificity(self) -> tuple[bool, int]:
        """A whole name before a wildcard, a longer one before a shorter one, any host last (Gateway API)."""
        return bool(self.hostname) and not self.hostname.startswith("*."), len(self.hostname)


def listener_of(listeners: Sequence[Listener], host: str, port: int | None = None) -> Listener | None:
    """The most specific listener of `port` (None: of any) that has `host` (lower case, no port), or None."""
    found = [
        listener
        for listener in listeners
        if (port is None or listener.port == port) and (not listener.hostname or host_takes(listener.hostname, host))
    ]
    return max(found, key=lambda listener: listener.specificity, default=None)
